// Shapes, shared memory and arguments of the Hopper separable kernel.
#pragma once
#include "cuda/fast_divide.h"
#include "cuda/octets.cuh"
#include "cuda/shared_limit.h"

namespace ik::cuda::separable_sm90 {

constexpr int kWindow = 3;
constexpr int kTaps = kWindow * kWindow;
constexpr int kChunk = 64;      // channels of a depthwise step
constexpr int kHalfChunk = 32;  // channels of a stage of weights
constexpr int kPixelBytes = 2 * kChunk;
constexpr int kWeightRowBytes = 2 * kHalfChunk;
constexpr int kRowBytes = 16;  // of a column of A
constexpr int kTileRows = 10;
constexpr int kStripRows = 5;  // of one warp
constexpr int kStrips = kTileRows / kStripRows;
constexpr int kHaloRows = kTileRows + kWindow - 1;
constexpr int kTapBytes = kTaps * kPixelBytes;

constexpr int kWarpgroupThreads = 128;
constexpr int kConsumers = 2;  // warpgroups
constexpr int kConsumerWarps = 4 * kConsumers;
constexpr int kThreads = kWarpgroupThreads * (1 + kConsumers);
constexpr int kTeams = 2;  // of producer warps, one warp a strip; they take turns at chunks
constexpr int kTeamThreads = 32 * kStrips;
constexpr int kMaxCluster = 3;  // with more, two teams could wait for different rounds of one barrier

constexpr uint32_t kStagesA = 4;
constexpr uint32_t kStagesB = 4;

// A block computes kTileRows x kColumns pixels by kN output channels. The pixels of a strip are consecutive rows of A,
// followed by rows that no pixel has.
template <int kColumns_, int kSlabs_, int kN_>
struct Tile {
  static constexpr int kColumns = kColumns_;
  static constexpr int kSlabs = kSlabs_;  // of 64 rows
  static constexpr int kN = kN_;
  static constexpr bool kHasSharedSlab = kSlabs > kConsumers;  // the warpgroups share the last slab's columns
  static constexpr int kSharedN = kN / kConsumers;

  static constexpr int kSteps = (kColumns + kWindow - 1) / kWindow;  // of three columns
  static constexpr int kPitch = kColumns + kWindow - 1;
  static constexpr int kHaloBytes = kHaloRows * kPitch * kPixelBytes;
  static constexpr int kInputBytes = kHaloBytes + kTapBytes;

  // The strips' rows of A. In front of each are two that the sliding window writes before its first pixel.
  static constexpr int kRows = kSlabs * kSlabRows;
  static constexpr int kSlackRows = kWindow - 1;
  static constexpr int kRowsOfStrip = (kRows + kSlackRows) / kStrips;
  // A column of 8 channels. An odd number of rows, so that the 8 columns lie in different banks.
  static constexpr int kPlaneRows = (kRows + kSlackRows) | 1;
  static constexpr int kPlaneBytes = kPlaneRows * kRowBytes;
  static constexpr int kBytesA = kChunk / 8 * kPlaneBytes;
  static constexpr int kBytesB = kN * kWeightRowBytes;

  // The warpgroups share out what the block is launched with: as much for each thread, in steps of 8.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kAccumulators = kN / 2 + (kHasSharedSlab ? kSharedN / 2 : 0);
  static constexpr int kConsumerRegisters = kAccumulators > 160 ? 224 : 216;
  static constexpr int kProducerRegisters = (1 + kConsumers) * kLaunchRegisters - kConsumers * kConsumerRegisters;

  static_assert(kColumns == kWindow * kSteps - (kWindow - 1), "the window slides in whole steps");
  static_assert(kStripRows * kColumns <= kRowsOfStrip - kSlackRows, "a strip's pixels need rows of A");
  static_assert(kSlabs == kConsumers || kSlabs == kConsumers + 1, "a slab each, and one that they share");
  static_assert(kN % (kConsumers * kOctetGroup) == 0, "output channels come in groups of 32");

  struct Shared {
    alignas(1024) unsigned char b[kStagesB][kBytesB];
    alignas(128) unsigned char input[kTeams][kInputBytes];  // halo [kHaloRows][kPitch][64], taps [9][64]
    alignas(128) unsigned char a[kStagesA][kBytesA];        // 8 columns of [kPlaneRows][8], the first rows are slack
    alignas(8) uint64_t b_full[kStagesB];
    uint64_t b_empty[kStagesB];
    uint64_t a_full[kStagesA];
    uint64_t a_empty[kStagesA];
    uint64_t input_full[kTeams];
  };
  static_assert(sizeof(Shared) <= kSharedBytes90, "shared memory");
};

// A value that is the same in all lanes of the warp, and known to be so: it goes to a uniform register.
IK_DEVICE uint32_t uniform(uint32_t value) { return __shfl_sync(0xffffffffu, value, 0); }

struct Pixels {
  int64_t stride_n;  // elements
  int stride_h, stride_w;
};

struct Args {
  const float* depthwise_bias;  // [C]; null = 0
  const float* scale;           // [K]; null = 1
  const float* shift;           // [K]; null = 0
  const void* residual;         // [N, P, Q, K]; null = none
  void* y;                      // [N, P, Q, K]
  Pixels residual_pixels, y_pixels;
  int C, P, Q, K;
  int pad_h, pad_w;
  uint32_t chunks;                     // of 64 channels
  uint32_t halves;                     // of 32 channels: the last chunk may have one only
  uint32_t items;                      // pixel tiles x groups of output tiles: what a cluster computes at a time
  uint32_t clusters;                   // of the grid
  uint32_t items_of_each, items_left;  // each cluster has so many items, the first items_left clusters one more
  uint32_t cluster;                    // blocks
  FastDivide by_cluster, by_chunks, by_halves, n_groups, row_tiles, column_tiles;
  bool input_relu, mid_relu;
  uint32_t low, high;  // the last activation's bounds, as pairs of the storage type: relu is [0, inf]
};

// Which pixels and output channels a cluster's item is, for one block of it.
struct Place {
  int image, row, column;  // of the first output pixel
  int k;

  template <typename Tile>
  static IK_DEVICE Place of(const Args& args, uint32_t item) {
    const uint32_t tile = args.n_groups.quotient(item);
    const uint32_t group = item - tile * args.n_groups.divisor;
    const uint32_t band = args.column_tiles.quotient(tile);
    const uint32_t image = args.row_tiles.quotient(band);
    return {static_cast<int>(image), static_cast<int>(band - image * args.row_tiles.divisor) * kTileRows,
            static_cast<int>(tile - band * args.column_tiles.divisor) * Tile::kColumns,
            static_cast<int>(group * args.cluster + cluster_ctarank()) * Tile::kN};
  }
};

// The work of this block's cluster: items first, first + clusters, ... of the grid's; each takes args.chunks chunks of
// A, and chunk q of them all is made by block q % cluster for every block of the cluster, in stage q % kStagesA.
struct Work {
  uint32_t first, items;

  static IK_DEVICE Work of(const Args& args) {
    const uint32_t first = args.by_cluster.quotient(blockIdx.x);
    return {first, args.items_of_each + (first < args.items_left ? 1 : 0)};
  }
  IK_DEVICE uint32_t item(const Args& args, uint32_t ordinal) const { return first + ordinal * args.clusters; }
};

// Barriers lie side by side.
IK_DEVICE uint32_t barrier_at(uint32_t first, uint32_t index) { return first + index * 8; }

}  // namespace ik::cuda::separable_sm90
