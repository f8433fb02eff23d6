// conv2d_bn_act on Hopper: implicit GEMM, persistent, warp-specialised. A producer thread copies what a tap sees of the
// tile's pixels (TMA's im2col mode: the padding comes as zeros) and the tap's weights into a ring of stages; two
// warpgroups multiply them with wgmma, then scale, shift, add the residual, activate and store.
//
// The product's depth runs over taps and, within a tap, over slices of channels. A stage has room for 64 channels: one
// slice of 64 or two slices of 32, which waste less where the channels are not a multiple of 64.
#pragma once
#include "cuda/octet_statistics.cuh"
#include "cuda/octets.cuh"
#include "cuda/shared_limit.h"
#include "cuda/warpgroup_ring.cuh"

namespace ik::cuda {

constexpr int kConvStageDepth = 64;

// A tile is kSlabs * 128 pixels by kN output channels.
template <int kSlabs, int kN>
struct ConvTile {
  static constexpr int kRows = kRingConsumers * kSlabs * kSlabRows;
  static constexpr int kRowBytes = 2 * kConvStageDepth;
  static constexpr int kBytesA = kRows * kRowBytes;
  static constexpr int kStageBytes = kBytesA + kN * kRowBytes;
  static constexpr int kStatisticsBytes = kRingConsumers * static_cast<int>(sizeof(OctetSums<kN>));
  static constexpr int kBarrierBytes = 256;
  static constexpr int kFittingStages = (kSharedBytes90 - kBarrierBytes) / kStageBytes;
  static constexpr int kMaxStages = 8;
  static constexpr int kMinStages = 4;
  // Where even four stages leave no room for the statistics, another tile has to serve training.
  static constexpr bool kStatistics = kMinStages * kStageBytes + kStatisticsBytes + kBarrierBytes <= kSharedBytes90;
  static constexpr int kStagesBeside = (kSharedBytes90 - kBarrierBytes - kStatisticsBytes) / kStageBytes;
  static constexpr int kUsableStages = kStatistics ? kStagesBeside : kFittingStages;
  static constexpr int kStages = kUsableStages < kMaxStages ? kUsableStages : kMaxStages;
  static_assert(kStages >= kMinStages, "too few stages to hide the latency of a copy");
  static_assert(kN % kOctetGroup == 0, "weights come in groups of 32 rows");

  struct Shared {
    alignas(1024) unsigned char stage[kStages][kStageBytes];
    RingBarriers<kStages> barriers;
    OctetSums<kStatistics ? kN : 1> sums[kRingConsumers];
  };
  static_assert(sizeof(Shared) <= kSharedBytes90, "shared memory");
};

struct ConvSm90Args {
  OctetEpilogue epilogue;
  float* partial;  // [runs of kSlabs * 64 pixels][2][K]: statistics of y; null = none
  int m_tiles, n_tiles;
  int iterations;  // stages that make up one tile
  int channels;    // of a slice: 64 or 32
  int C, P, Q, S, taps;
  int stride_h, stride_w;
  int pad_h, pad_w;
  int dilation_h, dilation_w;
};

// Walks the slices of the product's depth. Past the last tap there are only channels past C, which are zeros.
// `Depth`: anything with C and channels, S and taps.
class ConvSlice {
 public:
  IK_DEVICE int c() const { return c_; }
  IK_DEVICE int r() const { return r_; }
  IK_DEVICE int s() const { return s_; }
  IK_DEVICE int tap() const { return tap_; }

  template <typename Depth>
  IK_DEVICE void advance(const Depth& depth) {
    c_ += depth.channels;
    if (c_ < depth.C || tap_ + 1 == depth.taps) return;
    c_ = 0;
    ++tap_;
    if (++s_ < depth.S) return;
    s_ = 0;
    ++r_;
  }

 private:
  int c_ = 0;
  int r_ = 0;
  int s_ = 0;
  int tap_ = 0;
};

// The tap-0 pixel of an output pixel.
struct ConvBase {
  int n, h, w;

  IK_DEVICE ConvBase(int pixel, const ConvSm90Args& args) {
    const int row = pixel / args.Q;
    n = row / args.P;
    h = (row - n * args.P) * args.stride_h - args.pad_h;
    w = (pixel - row * args.Q) * args.stride_w - args.pad_w;
  }
};

template <int kSlabs, int kN>
IK_DEVICE void conv2d_fill(const TensorMap* x_map, const TensorMap* weight_map,
                           typename ConvTile<kSlabs, kN>::Shared& shared, const ConvSm90Args& args) {
  using Tile = ConvTile<kSlabs, kN>;
  const Ring<Tile::kStages> ring(shared.barriers);
  const uint32_t stages = smem_u32(shared.stage);
  const int row_bytes = 2 * args.channels;
  RingPosition<Tile::kStages> position;
  for (int tile = blockIdx.x; tile < args.m_tiles * args.n_tiles; tile += gridDim.x) {
    const int m_tile = tile / args.n_tiles;
    const int k = (tile - m_tile * args.n_tiles) * kN;
    const ConvBase base(m_tile * Tile::kRows, args);
    ConvSlice slice;
    // gate: stage warps=1
    for (int i = 0; i < args.iterations; ++i) {
      ring.wait_empty(position);
      const uint32_t full = ring.full(position.stage);
      uint32_t a = stages + position.stage * Tile::kStageBytes;
      uint32_t b = a + Tile::kBytesA;
      mbar_expect_tx(full, Tile::kStageBytes);
      // gate: copy warps=1 trips=2
      for (int depth = 0; depth < kConvStageDepth; depth += args.channels) {
        tma_load_im2col_4d(x_map, a, full, slice.c(), base.w, base.h, base.n, slice.s() * args.dilation_w,
                           slice.r() * args.dilation_h);
        load_octet_rows<kN>(weight_map, b, full, row_bytes, slice.c(), k, slice.tap());
        a += Tile::kRows * row_bytes;
        b += kN * row_bytes;
        slice.advance(args);
      }
      position.advance();
    }
  }
}

// Descriptors of the operands in stage 0, and the steps between the four wgmmas of a stage.
struct ConvOperands {
  uint64_t a, b;
  int a_half, b_half;  // from the first two to the last two
  int a_slab;

  template <int kSlabs, int kN>
  static IK_DEVICE ConvOperands of(uint32_t stages, int warpgroup, int channels) {
    using Tile = ConvTile<kSlabs, kN>;
    constexpr int kUnit = 16;  // bytes
    const int row_bytes = 2 * channels;
    const int group_bytes = 8 * row_bytes;
    const uint32_t a = stages + warpgroup * kSlabs * kSlabRows * row_bytes;
    const uint32_t b = stages + Tile::kBytesA;
    ConvOperands operands;
    operands.a_slab = kSlabRows * row_bytes / kUnit;
    if (channels == kConvStageDepth) {
      constexpr int kHalfRow = kConvStageDepth / kUnit;
      operands.a = make_desc<Swizzle::k128>(a, kUnit, group_bytes);
      operands.b = make_desc<Swizzle::k128>(b, kUnit, group_bytes);
      operands.a_half = kHalfRow;
      operands.b_half = kHalfRow;
    } else {
      operands.a = make_desc<Swizzle::k64>(a, kUnit, group_bytes);
      operands.b = make_desc<Swizzle::k64>(b, kUnit, group_bytes);
      operands.a_half = Tile::kRows * row_bytes / kUnit;
      operands.b_half = kN * row_bytes / kUnit;
    }
    return operands;
  }
};

template <typename T, int kSlabs, int kN>
IK_DEVICE void conv2d_multiply_stage(float (&acc)[kSlabs][kN / 2], const ConvOperands& operands, int stage,
                                     bool accumulate) {
  constexpr int kSteps = 4;
  constexpr int kStep = 2;  // 16 channels
  const uint64_t offset = static_cast<uint64_t>(stage * (ConvTile<kSlabs, kN>::kStageBytes / 16));
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint64_t a = operands.a + offset + step / 2 * operands.a_half + step % 2 * kStep;
    const uint64_t b = operands.b + offset + step / 2 * operands.b_half + step % 2 * kStep;
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      Wgmma<T, kN>::run(acc[slab], a + slab * operands.a_slab, b, step > 0 || accumulate);
    }
  }
  wgmma_commit();
}

template <typename T, int kSlabs, int kN>
IK_DEVICE void conv2d_consume(typename ConvTile<kSlabs, kN>::Shared& shared, int warpgroup, const ConvSm90Args& args) {
  using Tile = ConvTile<kSlabs, kN>;
  constexpr int kWarpgroupRows = kSlabs * kSlabRows;
  const Ring<Tile::kStages> ring(shared.barriers);
  const ConvOperands operands = ConvOperands::of<kSlabs, kN>(smem_u32(shared.stage), warpgroup, args.channels);
  RingPosition<Tile::kStages> position;
  for (int tile = blockIdx.x; tile < args.m_tiles * args.n_tiles; tile += gridDim.x) {
    float acc[kSlabs][kN / 2];
    multiply_stages(ring, position, args.iterations, [&](int stage, bool accumulate) {
      conv2d_multiply_stage<T, kSlabs, kN>(acc, operands, stage, accumulate);
    });

    const int m_tile = tile / args.n_tiles;
    const int column = (tile - m_tile * args.n_tiles) * kN;
    // Asked for once more: held over the product it is one register too many for the largest tile.
    const int row = m_tile * Tile::kRows + warpgroup_index() * kWarpgroupRows;
    const OctetPlace place = octet_place(row, column);
    if constexpr (Tile::kStatistics) {
      if (args.partial && row < args.epilogue.rows) {
        float* const partial = args.partial + static_cast<int64_t>(row / kWarpgroupRows) * 2 * args.epilogue.K;
        OctetStatistics<kN> statistics(shared.sums[warpgroup], 1 + warpgroup);
        statistics.template reduce<T, kSlabs>(acc, place, args.epilogue, partial);
        write_octets<T, kSlabs, kN>(acc, place, args.epilogue);
        continue;
      }
    }
    finish_octets<T, kSlabs, kN>(acc, place, args.epilogue);
  }
}

template <typename T, int kSlabs, int kN>
__global__ void __launch_bounds__(kRingThreads, 1)
    conv2d_sm90(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap weight_map,
                const __grid_constant__ ConvSm90Args args) {
  using Tile = ConvTile<kSlabs, kN>;
  IK_DYNAMIC_SHARED(memory);
  typename Tile::Shared& shared = *reinterpret_cast<typename Tile::Shared*>(memory);

  if (threadIdx.x == 0) {
    tma_prefetch(&x_map);
    tma_prefetch(&weight_map);
    init_ring(shared.barriers);
  }
  __syncthreads();

  split_warpgroups([&] { conv2d_fill<kSlabs, kN>(&x_map, &weight_map, shared, args); },
                   [&](int warpgroup) { conv2d_consume<T, kSlabs, kN>(shared, warpgroup, args); });
}

}  // namespace ik::cuda
