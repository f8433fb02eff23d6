// asymmetric_pair on Hopper in one kernel. The second window lies along one axis, so a block takes whole lines of that
// axis: it computes their intermediate as conv2d_bn_act does, keeps it in shared memory and multiplies it there.
//
// Rows of a tile are pixels, those of all lines at one place along them side by side: row = place * lines + line. The
// intermediate has 16 bytes of all its rows, then the next 16, without a swizzle, so that rows lie 16 bytes apart, and
// what a tap of the second window sees is the same operand from another row on: `lines` times the dilation further for
// each tap. Rows of zeros before and behind are the padding.
#pragma once
#include "cuda/conv2d_bn_act_sm90.cuh"

namespace ik::cuda {

template <int kN>
struct PairSm90Tile {
  using Conv = ConvTile<1, kN>;  // the layout of a stage; the second product leaves its pixels unused
  static constexpr int kRows = Conv::kRows;
  static constexpr int kStages = 4;

  struct Shared {
    alignas(1024) unsigned char stage[kStages][Conv::kStageBytes];
    RingBarriers<kStages> barriers;
    alignas(128) unsigned char intermediate[1];  // [channels / 8][rows][8]
  };
  static constexpr int64_t bytes(int64_t intermediate_bytes) {
    return static_cast<int64_t>(offsetof(Shared, intermediate)) + intermediate_bytes;
  }
};

struct PairDepth {
  int iterations;  // stages that make up a tile
  int channels;    // of a slice: 64 or 32
  int C, S, taps;
};

struct PairSm90Args {
  PairDepth first, second;
  OctetEpilogue first_epilogue, second_epilogue;  // only scale, shift, K and activation
  void* y;
  int64_t y_stride_image, y_stride_line, y_stride_place;  // elements
  bool vertical;                                          // lines are columns, else rows
  int images, lines;                                      // lines of an image
  int tile_images, tile_lines;                            // of a tile: the lines of several images
  int line_tiles, tiles;
  int length, out_length;      // places of a line of the intermediate and of y
  int pad_h, pad_w;            // of the first window
  int dilation_h, dilation_w;  // of the first window
  int zero_rows;               // before the intermediate's first
  int tap_rows;                // from a tap of the second window to the next
  int rows;                    // of the intermediate, with all zeros: 2 more than a multiple of 8
  int intermediate_vectors;    // of 16 bytes
};

// Where a tile begins.
struct PairTileStart {
  int image, line;

  IK_DEVICE PairTileStart(int tile, const PairSm90Args& args) {
    const int group = tile / args.line_tiles;
    image = group * args.tile_images;
    line = (tile - group * args.line_tiles) * args.tile_lines;
  }
};

template <int kN>
IK_DEVICE void pair_fill(const TensorMap* x_map, const TensorMap* first_map, const TensorMap* second_map,
                         typename PairSm90Tile<kN>::Shared& shared, const PairSm90Args& args) {
  using Tile = PairSm90Tile<kN>;
  const Ring<Tile::kStages> ring(shared.barriers);
  const uint32_t stages = smem_u32(shared.stage);
  const int first_bytes = 2 * args.first.channels;  // of a row
  const int second_bytes = 2 * args.second.channels;
  const int x_bytes = args.length * args.tile_lines * args.tile_images * Tile::Conv::kRowBytes;
  constexpr int kWeightBytes = kN * Tile::Conv::kRowBytes;
  RingPosition<Tile::kStages> position;
  for (int tile = blockIdx.x; tile < args.tiles; tile += gridDim.x) {
    const PairTileStart start(tile, args);
    for (int k = 0; k < args.first_epilogue.K; k += kN) {
      ConvSlice slice;
      // gate: stage warps=1
      for (int i = 0; i < args.first.iterations; ++i) {
        ring.wait_empty(position);
        const uint32_t full = ring.full(position.stage);
        uint32_t a = stages + position.stage * Tile::Conv::kStageBytes;
        uint32_t b = a + Tile::Conv::kBytesA;
        mbar_expect_tx(full, x_bytes + kWeightBytes);
        // gate: copy warps=1 trips=2
        for (int depth = 0; depth < kConvStageDepth; depth += args.first.channels) {
          const int h = slice.r() * args.dilation_h - args.pad_h;
          const int w = slice.s() * args.dilation_w - args.pad_w;
          tma_load_4d(x_map, a, full, slice.c(), start.line + (args.vertical ? w : h), start.image,
                      args.vertical ? h : w);
          load_octet_rows<kN>(first_map, b, full, first_bytes, slice.c(), k, slice.tap());
          a += Tile::kRows * first_bytes;
          b += kN * first_bytes;
          slice.advance(args.first);
        }
        position.advance();
      }
    }
    for (int k = 0; k < args.second_epilogue.K; k += kN) {
      ConvSlice slice;
      // gate: stage warps=1
      for (int i = 0; i < args.second.iterations; ++i) {
        ring.wait_empty(position);
        const uint32_t full = ring.full(position.stage);
        uint32_t b = stages + position.stage * Tile::Conv::kStageBytes + Tile::Conv::kBytesA;
        mbar_expect_tx(full, kWeightBytes);
        // gate: copy warps=1 trips=2
        for (int depth = 0; depth < kConvStageDepth; depth += args.second.channels) {
          load_octet_rows<kN>(second_map, b, full, second_bytes, slice.c(), k, slice.tap());
          b += kN * second_bytes;
          slice.advance(args.second);
        }
        position.advance();
      }
    }
  }
}

// Descriptors of the second product's operands.
template <int kN>
struct SecondOperands {
  uint64_t a;  // of this warpgroup's rows under tap 0
  uint64_t b;  // in stage 0
  int b_half;

  IK_DEVICE SecondOperands(uint32_t stages, uint32_t intermediate, int warpgroup, const PairSm90Args& args) {
    constexpr int kGroupBytes = 8 * 16;
    const uint32_t first_row = intermediate + warpgroup * kSlabRows * 16;
    a = make_desc_none(first_row, args.rows * 16, kGroupBytes);
    const ConvOperands stage = ConvOperands::of<1, kN>(stages, warpgroup, args.second.channels);
    b = stage.b;
    b_half = stage.b_half;
  }

  // Behind the last tap the weights are zeros: any channels do.
  IK_DEVICE uint64_t rows(const ConvSlice& slice, const PairSm90Args& args) const {
    const int c = slice.c() < args.second.C ? slice.c() : 0;
    return a + static_cast<uint64_t>(slice.tap() * args.tap_rows + c / kOctet * args.rows);
  }
};

template <typename T, int kN>
IK_DEVICE void multiply_intermediate(float (&acc)[1][kN / 2], const SecondOperands<kN>& operands, ConvSlice& slice,
                                     int stage, bool accumulate, const PairSm90Args& args) {
  constexpr int kSteps = 4;
  constexpr int kStep = 2;  // 16 channels of the weights
  const int step_rows = 2 * args.rows;
  const uint64_t first = operands.rows(slice, args);
  slice.advance(args.second);
  uint64_t second = first + 2 * step_rows;
  if (args.second.channels < kConvStageDepth) {
    second = operands.rows(slice, args);
    slice.advance(args.second);
  }
  const uint64_t offset = static_cast<uint64_t>(stage * (ConvTile<1, kN>::kStageBytes / 16));
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint64_t a = (step / 2 ? second : first) + step % 2 * step_rows;
    const uint64_t b = operands.b + offset + step / 2 * operands.b_half + step % 2 * kStep;
    Wgmma<T, kN>::run(acc[0], a, b, step > 0 || accumulate);
  }
  wgmma_commit();
}

template <typename T, int kN>
IK_DEVICE void store_intermediate(const float (&acc)[1][kN / 2], const OctetPlace& place, uint32_t intermediate,
                                  const PairSm90Args& args) {
  const int rows = args.length * args.tile_lines * args.tile_images;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = place.row0 + octet_row(0, half);
#pragma unroll
    for (int group = 0; group < kN / kOctetGroup; ++group) {
      const int column = place.column0 + group * kOctetGroup;
      const uint4 octet = pack_octet<T>(acc[0], group, half);
      if (row < rows && column < args.first_epilogue.K) {
        sts128(intermediate + (column / kOctet * args.rows + args.zero_rows + row) * 16, octet);
      }
    }
  }
}

template <typename T, int kN>
IK_DEVICE void store_pair(const float (&acc)[1][kN / 2], const OctetPlace& place, const PairTileStart& start,
                          const PairSm90Args& args) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = place.row0 + octet_row(0, half);
    const int lines = args.tile_lines * args.tile_images;
    const int along = row / lines;
    const int in_tile = row - along * lines;
    const int image_in_tile = in_tile / args.tile_lines;
    const int image = start.image + image_in_tile;
    const int line = start.line + in_tile - image_in_tile * args.tile_lines;
    if (along >= args.out_length || image >= args.images || line >= args.lines) continue;
    T* const y = static_cast<T*>(args.y) + image * args.y_stride_image + line * args.y_stride_line +
                 along * args.y_stride_place + place.column0;
#pragma unroll
    for (int group = 0; group < kN / kOctetGroup; ++group) {
      const int column = group * kOctetGroup;
      const uint4 octet = pack_octet<T>(acc[0], group, half);
      if (place.column0 + column < args.second_epilogue.K) stg128(y + column, octet);
    }
  }
}

constexpr int kPairConsumers = 128 * kRingConsumers;
constexpr int kPairBarrier = 1;

template <typename T, int kN>
IK_DEVICE void pair_consume(typename PairSm90Tile<kN>::Shared& shared, int warpgroup, const PairSm90Args& args) {
  using Tile = PairSm90Tile<kN>;
  const Ring<Tile::kStages> ring(shared.barriers);
  const uint32_t stages = smem_u32(shared.stage);
  const uint32_t intermediate = smem_u32(shared.intermediate);
  const ConvOperands first = ConvOperands::of<1, kN>(stages, warpgroup, args.first.channels);
  const SecondOperands<kN> second(stages, intermediate, warpgroup, args);
  RingPosition<Tile::kStages> position;
  for (int tile = blockIdx.x; tile < args.tiles; tile += gridDim.x) {
    float acc[1][kN / 2];
    for (int k = 0; k < args.first_epilogue.K; k += kN) {
      multiply_stages(ring, position, args.first.iterations, [&](int stage, bool accumulate) {
        conv2d_multiply_stage<T, 1, kN>(acc, first, stage, accumulate);
      });
      const OctetPlace place = octet_place(warpgroup * kSlabRows, k);
      scale_octets<1, kN>(acc, place, args.first_epilogue);
      activate_octets<1, kN>(acc, args.first_epilogue.activation);
      // The other warpgroup may still read the last tile's.
      if (k == 0) bar_sync_n<kPairBarrier, kPairConsumers>();
      store_intermediate<T, kN>(acc, place, intermediate, args);
    }
    fence_proxy_async();
    bar_sync_n<kPairBarrier, kPairConsumers>();
    for (int k = 0; k < args.second_epilogue.K; k += kN) {
      ConvSlice slice;
      multiply_stages(ring, position, args.second.iterations, [&](int stage, bool accumulate) {
        multiply_intermediate<T, kN>(acc, second, slice, stage, accumulate, args);
      });
      const OctetPlace place = octet_place(warpgroup * kSlabRows, k);
      scale_octets<1, kN>(acc, place, args.second_epilogue);
      activate_octets<1, kN>(acc, args.second_epilogue.activation);
      store_pair<T, kN>(acc, place, PairTileStart(tile, args), args);
    }
  }
}

// Zeros for the intermediate's padding and for rows of a stage behind the tile's, which no copy writes.
template <int kN>
IK_DEVICE void pair_clear(typename PairSm90Tile<kN>::Shared& shared, const PairSm90Args& args) {
  using Tile = PairSm90Tile<kN>;
  const uint4 zeros = make_uint4(0, 0, 0, 0);
  const uint32_t intermediate = smem_u32(shared.intermediate);
  for (int i = threadIdx.x; i < args.intermediate_vectors; i += kRingThreads) sts128(intermediate + i * 16, zeros);
  const int row_bytes = 2 * args.first.channels;
  const int first = args.length * args.tile_lines * args.tile_images * row_bytes;
  for (int stage = 0; stage < Tile::kStages; ++stage) {
    for (int slices = 0; slices < Tile::Conv::kBytesA; slices += Tile::kRows * row_bytes) {
      const uint32_t a = smem_u32(shared.stage[stage]) + slices;
      for (int i = first + threadIdx.x * 16; i < Tile::kRows * row_bytes; i += kRingThreads * 16) sts128(a + i, zeros);
    }
  }
  fence_proxy_async();
}

template <typename T, int kN>
__global__ void __launch_bounds__(kRingThreads, 1)
    asymmetric_pair_sm90(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap first_map,
                         const __grid_constant__ TensorMap second_map, const __grid_constant__ PairSm90Args args) {
  using Tile = PairSm90Tile<kN>;
  IK_DYNAMIC_SHARED(memory);
  typename Tile::Shared& shared = *reinterpret_cast<typename Tile::Shared*>(memory);

  if (threadIdx.x == 0) {
    tma_prefetch(&x_map);
    tma_prefetch(&first_map);
    tma_prefetch(&second_map);
    init_ring(shared.barriers);
  }
  pair_clear<kN>(shared, args);
  __syncthreads();

  split_warpgroups([&] { pair_fill<kN>(&x_map, &first_map, &second_map, shared, args); },
                   [&](int warpgroup) { pair_consume<T, kN>(shared, warpgroup, args); });
}

}  // namespace ik::cuda
