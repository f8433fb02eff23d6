// conv2d_bn_act as an implicit product for sm_80 and later: cp.async fills a ring of stages, ldmatrix and mma.sync
// empty it, and the epilogue works on the accumulators.
#pragma once
#include "cuda/conv2d_tiles.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/primitives.cuh"
#include "cuda/tile_product.cuh"

namespace ik::cuda {

constexpr int kConvStages = 4;

struct Conv2dKernel {
  ConvGeometry geometry;
  Epilogue epilogue;
  int64_t y_stride_n, y_stride_h, y_stride_w;  // elements, as those of the residual
  int64_t residual_stride_n, residual_stride_h, residual_stride_w;
  FastDivide column_tiles;
  float* partials;  // [row tiles][2][K]: mean and sum of squared distances of the stored values; null = not wanted
};

template <typename Tile>
struct ConvShared {
  unsigned char left[kConvStages][Tile::kLeftBytes];
  unsigned char right[kConvStages][Tile::kRightBytes];
  ScaleShiftTile<Tile::kColumns> scale_shift;
};

// Behind the product the ring is free for the sums of the statistics.
template <typename Tile>
struct StatisticsShared {
  float sums[Tile::kWarpsDown][Tile::kColumns];
  float mean[Tile::kColumns];
};

template <typename Product, typename Tile, typename Loader>
IK_DEVICE void accumulate(const ConvGeometry& g, int64_t first_pixel, int first_column, ConvShared<Tile>& shared,
                          const StageProduct<Product, Tile>& product, Accumulators<Tile>& acc) {
  Loader loader(g, first_pixel, threadIdx.x);
  WeightLoader<Tile> weights(g, first_column, threadIdx.x);
  const uint32_t left = smem_u32(shared.left);
  const uint32_t right = smem_u32(shared.right);

#pragma unroll
  for (int stage = 0; stage < kConvStages - 1; ++stage) {
    if (stage < g.steps) {
      loader.fetch(g, left + stage * Tile::kLeftBytes);
      weights.fetch(right + stage * Tile::kRightBytes);
      loader.store(left + stage * Tile::kLeftBytes);
    }
    cp_async_commit();
  }
  int reading = 0;
  int filling = kConvStages - 1;
  for (int step = 0; step < g.steps; ++step) {
    cp_async_wait<kConvStages - 2>();
    __syncthreads();
    const bool more = step + kConvStages - 1 < g.steps;
    if (more) {
      loader.fetch(g, left + filling * Tile::kLeftBytes);
      weights.fetch(right + filling * Tile::kRightBytes);
    }
    cp_async_commit();
    product.add(acc, left + reading * Tile::kLeftBytes, right + reading * Tile::kRightBytes);
    if (more) loader.store(left + filling * Tile::kLeftBytes);
    filling = reading;
    reading = reading + 1 == kConvStages ? 0 : reading + 1;
  }
}

IK_DEVICE OutputPixel output_pixel(const Conv2dKernel& args, int64_t pixel) {
  if (pixel >= args.geometry.pixels) return {false, 0, 0};
  const PixelPosition at = pixel_position(static_cast<int>(pixel), args.geometry.image, args.geometry.row);
  return {true, at.n * args.y_stride_n + at.p * args.y_stride_h + at.q * args.y_stride_w,
          at.n * args.residual_stride_n + at.p * args.residual_stride_h + at.q * args.residual_stride_w};
}

// first_row: this thread's first row of the fragments; the next are 8 further each.
template <typename T, typename Tile>
IK_DEVICE void store_tile(const Conv2dKernel& args, const Accumulators<Tile>& acc, int64_t first_row, int first_column,
                          int column_in_tile, const ScaleShiftTile<Tile::kColumns>& scale_shift) {
#pragma unroll
  for (int f = 0; f < Tile::kFragments; ++f) {
    const int64_t row = first_row + f * kFragmentRows;
    const OutputPixel pixel[2] = {output_pixel(args, row), output_pixel(args, row + kFragmentRows / 2)};
    store_fragment<T>(acc[f], pixel, first_column + column_in_tile, scale_shift, column_in_tile, args.epilogue);
  }
}

template <typename Tile>
IK_DEVICE float sum_of_warps(const StatisticsShared<Tile>& shared, int column) {
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < Tile::kWarpsDown; ++w) sum += shared.sums[w][column];
  return sum;
}

template <typename T, typename Tile>
IK_DEVICE void store_statistics(const Conv2dKernel& args, const Accumulators<Tile>& acc, int64_t row_tile,
                                int64_t first_row, int first_column, int column_in_tile, int warp_down,
                                const ScaleShiftTile<Tile::kColumns>& scale_shift, StatisticsShared<Tile>& shared) {
  uint32_t inside = 0;
#pragma unroll
  for (int i = 0; i < 2 * Tile::kFragments; ++i) {
    if (first_row + i * (kFragmentRows / 2) < args.geometry.pixels) inside |= 1u << i;
  }
  const int64_t left = args.geometry.pixels - row_tile * Tile::kRows;
  const float rows = static_cast<float>(left < Tile::kRows ? left : Tile::kRows);
  float* partials = args.partials + row_tile * 2 * args.geometry.K;

  sum_rows<T>(acc, inside, scale_shift, column_in_tile, ValueTerm{}, shared.sums[warp_down]);
  __syncthreads();
  for (int i = threadIdx.x; i < Tile::kColumns; i += Tile::kThreads) {
    shared.mean[i] = sum_of_warps(shared, i) / rows;
    if (first_column + i < args.geometry.K) partials[first_column + i] = shared.mean[i];
  }
  __syncthreads();
  sum_rows<T>(acc, inside, scale_shift, column_in_tile, SquareTerm{shared.mean}, shared.sums[warp_down]);
  __syncthreads();
  for (int i = threadIdx.x; i < Tile::kColumns; i += Tile::kThreads) {
    if (first_column + i < args.geometry.K) {
      partials[args.geometry.K + first_column + i] = sum_of_warps(shared, i);
    }
  }
}

template <typename Product, typename Tile, typename Loader>
__global__ void __launch_bounds__(Tile::kThreads) conv2d_kernel(const __grid_constant__ Conv2dKernel args) {
  IK_DYNAMIC_SHARED(bytes);
  ConvShared<Tile>& shared = *reinterpret_cast<ConvShared<Tile>*>(bytes);
  using T = typename Product::Type;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int warp_down = warp % Tile::kWarpsDown;
  const int column_in_tile = warp / Tile::kWarpsDown * Tile::kWarpColumns;
  const int row_tile = args.column_tiles.quotient(blockIdx.x);
  const int first_column = (blockIdx.x - row_tile * args.column_tiles.divisor) * Tile::kColumns;
  const int64_t first_pixel = static_cast<int64_t>(row_tile) * Tile::kRows;
  shared.scale_shift.load(args.epilogue, first_column, threadIdx.x, Tile::kThreads);

  Accumulators<Tile> acc = {};
  const StageProduct<Product, Tile> product(warp_down * Tile::kWarpRows, column_in_tile, lane);
  accumulate<Product, Tile, Loader>(args.geometry, first_pixel, first_column, shared, product, acc);

  const int64_t first_row = first_pixel + warp_down * Tile::kWarpRows + lane / 4;
  store_tile<T, Tile>(args, acc, first_row, first_column, column_in_tile, shared.scale_shift);
  if (args.partials) {
    __syncthreads();
    store_statistics<T, Tile>(args, acc, row_tile, first_row, first_column, column_in_tile, warp_down,
                              shared.scale_shift, *reinterpret_cast<StatisticsShared<Tile>*>(bytes));
  }
}

}  // namespace ik::cuda
