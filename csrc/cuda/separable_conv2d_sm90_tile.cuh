// Shapes, shared memory and arguments of the Hopper separable kernel.
#pragma once
#include "cuda/fast_divide.h"
#include "cuda/octets.cuh"
#include "cuda/ring.cuh"

namespace ik::cuda::separable_sm90 {

constexpr int kWindow = 3;
constexpr int kTaps = kWindow * kWindow;
constexpr int kChunk = 64;      // channels of a depthwise step
constexpr int kHalfChunk = 32;  // channels of a stage of weights
constexpr int kPixelBytes = 2 * kChunk;
constexpr int kWeightRowBytes = 2 * kHalfChunk;
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

constexpr int kStagesA = 4;
constexpr int kSharedLimit = 232448;

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

  static constexpr int kRows = kSlabs * kSlabRows;
  static constexpr int kRowsOfStrip = kRows / kStrips;
  // A column of 8 channels; 16 bytes more than its rows, so that the 8 columns lie in different banks.
  static constexpr int kPlaneBytes = kRows * 16 + 16;
  static constexpr int kBytesA = kChunk / 8 * kPlaneBytes;
  static constexpr int kBytesB = kN * kWeightRowBytes;

  static constexpr int kBarrierBytes = 256;
  static constexpr int kLeftForB = kSharedLimit - kBarrierBytes - kStagesA * kBytesA - kTeams * kInputBytes;
  static constexpr int kMaxStagesB = 6;
  static constexpr int kStagesB = kLeftForB / kBytesB < kMaxStagesB ? kLeftForB / kBytesB : kMaxStagesB;

  static_assert(kColumns == kWindow * kSteps - (kWindow - 1), "the window slides in whole steps");
  static_assert(kStripRows * kColumns <= kRowsOfStrip, "a strip's pixels need rows of A");
  static_assert(kSlabs == kConsumers || kSlabs == kConsumers + 1, "a slab each, and one that they share");
  static_assert(kN % (kConsumers * kOctetGroup) == 0, "output channels come in groups of 32");
  static_assert(kStagesB >= 4, "too few stages to hide the latency of a copy");

  struct Shared {
    alignas(1024) unsigned char b[kStagesB][kBytesB];
    alignas(128) unsigned char input[kTeams][kInputBytes];  // halo [kHaloRows][kPitch][64], taps [9][64]
    alignas(128) unsigned char a[kStagesA][kBytesA];        // 8 columns of kRows x 8 channels
    RingBarriers<kStagesB> b_ring;
    alignas(8) uint64_t a_full[kStagesA];
    uint64_t a_empty[kStagesA];
    uint64_t input_full[kTeams];
  };
  static_assert(sizeof(Shared) <= kSharedLimit, "shared memory");
};

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
  int chunks;   // of 64 channels
  int halves;   // of 32 channels: the last chunk may have one only
  int items;    // pixel tiles x groups of output tiles: what a cluster computes at a time
  int cluster;  // blocks
  int clusters;
  FastDivide n_groups, row_tiles, column_tiles;
  // Activations are bounds, as pairs of the storage type: relu is [0, inf].
  uint32_t input_low, mid_low;
  uint32_t low, high;
};

// Which pixels and output channels a cluster's item is, for one block of it.
struct Place {
  int image, row, column;  // of the first output pixel
  int k;

  template <int kColumns, int kN>
  static IK_DEVICE Place of(const Args& args, int item, int rank) {
    const int tile = args.n_groups.quotient(item);
    const int group = item - tile * static_cast<int>(args.n_groups.divisor);
    const int band = args.column_tiles.quotient(tile);
    const int image = args.row_tiles.quotient(band);
    return {image, (band - image * static_cast<int>(args.row_tiles.divisor)) * kTileRows,
            (tile - band * static_cast<int>(args.column_tiles.divisor)) * kColumns, (group * args.cluster + rank) * kN};
  }
};

// The work of this block's cluster: items first, first + args.clusters, ...; each takes args.chunks chunks of A, and
// chunk q of them all is made by block q % cluster for every block of the cluster, in stage q % kStagesA.
struct Work {
  int rank;
  int first;
  int chunks;

  static IK_DEVICE Work of(const Args& args) {
    Work work;
    work.rank = static_cast<int>(cluster_ctarank());
    work.first = static_cast<int>(blockIdx.x) / args.cluster;
    work.chunks = (args.items - work.first + args.clusters - 1) / args.clusters * args.chunks;
    return work;
  }
};

}  // namespace ik::cuda::separable_sm90
