// The gradient of the pointwise weight on Hopper: grad_z [pixels][K] transposed times the activated depthwise output
// [pixels][C], both as they lie in memory, so that wgmma reads operands whose rows and columns are adjacent and whose
// depth, the pixels, is not. A producer thread copies 64 pixels a stage; two warpgroups multiply them. The pixels are
// shared out among blocks, whose sums a second kernel adds in a fixed order.
#pragma once
#include "cuda/octets.cuh"
#include "cuda/shared_limit.h"
#include "cuda/warpgroup_ring.cuh"

namespace ik::cuda {

constexpr int kWeightStagePixels = 64;
constexpr int kSpan = 64;  // elements of a pixel that one copy takes and a swizzle spans
constexpr int kSpanRowBytes = 2 * kSpan;
constexpr int kSpanBytes = kWeightStagePixels * kSpanRowBytes;

// A tile is kSlabs * 128 rows (of K) by kN columns (of C).
template <int kSlabs, int kN>
struct WeightTile90 {
  static constexpr int kRows = kRingConsumers * kSlabs * kSlabRows;
  static constexpr int kRowSpans = kRows / kSpan;
  static constexpr int kColumnSpans = kN / kSpan;
  static constexpr int kStageBytes = (kRowSpans + kColumnSpans) * kSpanBytes;
  static constexpr int kBarrierBytes = 256;
  static constexpr int kFittingStages = (kSharedBytes90 - kBarrierBytes) / kStageBytes;
  static constexpr int kMaxStages = 8;
  static constexpr int kStages = kFittingStages < kMaxStages ? kFittingStages : kMaxStages;
  static_assert(kStages >= 4, "too few stages to hide the latency of a copy");
  static_assert(kN % kSpan == 0 && kSlabRows == kSpan, "a slab of rows is one span");

  struct Shared {
    alignas(1024) unsigned char stage[kStages][kStageBytes];
    RingBarriers<kStages> barriers;
  };
  static_assert(sizeof(Shared) <= kSharedBytes90, "shared memory");
};

struct WeightSm90Args {
  int pixels, K, C, pitch;
  int columns;       // tiles across C
  int tiles;         // across K and C
  int split_pixels;  // of a block: a multiple of the stage's
  float* partial;    // [splits][K][pitch]
};

// The part of the product that a block computes.
struct WeightPart {
  int split, row0, column0;
  int begin;
  int stages;

  template <typename Tile>
  static IK_DEVICE WeightPart of_block(int tile_columns, const WeightSm90Args& args) {
    WeightPart part;
    const int block = static_cast<int>(blockIdx.x);
    part.split = block / args.tiles;
    const int tile = block - part.split * args.tiles;
    const int tile_row = tile / args.columns;
    part.row0 = tile_row * Tile::kRows;
    part.column0 = (tile - tile_row * args.columns) * tile_columns;
    part.begin = part.split * args.split_pixels;
    const int left = args.pixels - part.begin;
    const int pixels = left < args.split_pixels ? left : args.split_pixels;
    part.stages = (pixels + kWeightStagePixels - 1) / kWeightStagePixels;
    return part;
  }
};

template <int kSlabs, int kN>
IK_DEVICE void weight_fill(const TensorMap* row_map, const TensorMap* column_map,
                           typename WeightTile90<kSlabs, kN>::Shared& shared, const WeightPart& part) {
  using Tile = WeightTile90<kSlabs, kN>;
  const Ring<Tile::kStages> ring(shared.barriers);
  const uint32_t stages = smem_u32(shared.stage);
  RingPosition<Tile::kStages> position;
  int pixel = part.begin;
  // gate: stage warps=1
  for (int i = 0; i < part.stages; ++i) {
    ring.wait_empty(position);
    const uint32_t full = ring.full(position.stage);
    uint32_t to = stages + position.stage * Tile::kStageBytes;
    mbar_expect_tx(full, Tile::kStageBytes);
#pragma unroll
    for (int span = 0; span < Tile::kRowSpans; ++span) {
      tma_load_2d(row_map, to + span * kSpanBytes, full, part.row0 + span * kSpan, pixel);
    }
    to += Tile::kRowSpans * kSpanBytes;
#pragma unroll
    for (int span = 0; span < Tile::kColumnSpans; ++span) {
      tma_load_2d(column_map, to + span * kSpanBytes, full, part.column0 + span * kSpan, pixel);
    }
    pixel += kWeightStagePixels;
    position.advance();
  }
}

template <typename T, int kSlabs, int kN>
IK_DEVICE void weight_multiply(float (&acc)[kSlabs][kN / 2], uint64_t rows, uint64_t columns, bool accumulate) {
  constexpr int kDepth = 16;  // pixels of a wgmma
  constexpr int kUnit = 16;   // bytes
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kWeightStagePixels / kDepth; ++step) {
    constexpr int kStep = kDepth * kSpanRowBytes / kUnit;
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      Wgmma<T, kN, 1, 1>::run(acc[slab], rows + slab * (kSpanBytes / kUnit) + step * kStep, columns + step * kStep,
                              step > 0 || accumulate);
    }
  }
  wgmma_commit();
}

template <int kSlabs, int kN>
IK_DEVICE void store_weight_sums(const float (&acc)[kSlabs][kN / 2], int warpgroup, const WeightPart& part,
                                 const WeightSm90Args& args) {
  const int thread = threadIdx.x % 128;
  const int first_row = part.row0 + warpgroup * kSlabs * kSlabRows + thread / 32 * 16 + thread % 32 / 4;
  const int first_column = part.column0 + thread % 4 * 2;
  float* const partial = args.partial + static_cast<int64_t>(part.split) * args.K * args.pitch;
#pragma unroll
  for (int slab = 0; slab < kSlabs; ++slab) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + octet_row(slab, half);
      if (row >= args.K) continue;
      float* const to = partial + static_cast<int64_t>(row) * args.pitch + first_column;
#pragma unroll
      for (int block = 0; block < kN / 8; ++block) {
        if (first_column + 8 * block >= args.C) break;
        const float* const sums = &acc[slab][4 * block + 2 * half];
        *reinterpret_cast<float2*>(to + 8 * block) = make_float2(sums[0], sums[1]);
      }
    }
  }
}

template <typename T, int kSlabs, int kN>
IK_DEVICE void weight_consume(typename WeightTile90<kSlabs, kN>::Shared& shared, int warpgroup, const WeightPart& part,
                              const WeightSm90Args& args) {
  using Tile = WeightTile90<kSlabs, kN>;
  constexpr int kGroupBytes = 8 * kSpanRowBytes;  // of 8 pixels
  constexpr int kUnit = 16;
  const Ring<Tile::kStages> ring(shared.barriers);
  const uint32_t stages = smem_u32(shared.stage);
  const uint64_t rows = make_desc<Swizzle::k128>(stages + warpgroup * kSlabs * kSpanBytes, kSpanBytes, kGroupBytes);
  const uint64_t columns = make_desc<Swizzle::k128>(stages + Tile::kRowSpans * kSpanBytes, kSpanBytes, kGroupBytes);
  RingPosition<Tile::kStages> position;
  float acc[kSlabs][kN / 2];
  multiply_stages(ring, position, part.stages, [&](int stage, bool accumulate) {
    const uint64_t offset = static_cast<uint64_t>(stage * (Tile::kStageBytes / kUnit));
    weight_multiply<T, kSlabs, kN>(acc, rows + offset, columns + offset, accumulate);
  });
  store_weight_sums<kSlabs, kN>(acc, warpgroup, part, args);
}

template <typename T, int kSlabs, int kN>
__global__ void __launch_bounds__(kRingThreads, 1)
    weight_gradient_sm90(const __grid_constant__ TensorMap row_map, const __grid_constant__ TensorMap column_map,
                         const __grid_constant__ WeightSm90Args args) {
  using Tile = WeightTile90<kSlabs, kN>;
  IK_DYNAMIC_SHARED(memory);
  typename Tile::Shared& shared = *reinterpret_cast<typename Tile::Shared*>(memory);
  const WeightPart part = WeightPart::of_block<Tile>(kN, args);

  if (threadIdx.x == 0) {
    tma_prefetch(&row_map);
    tma_prefetch(&column_map);
    init_ring(shared.barriers);
  }
  __syncthreads();

  split_warpgroups([&] { weight_fill<kSlabs, kN>(&row_map, &column_map, shared, part); },
                   [&](int warpgroup) { weight_consume<T, kSlabs, kN>(shared, warpgroup, part, args); });
}

}  // namespace ik::cuda
