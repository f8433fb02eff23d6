// conv2d_bn_act as an implicit product for sm_80 and later: cp.async fills a ring of stages, ldmatrix and mma.sync
// empty it, and the epilogue works on the accumulators.
#pragma once
#include "cuda/conv2d_mainloop.cuh"
#include "cuda/conv2d_tiles.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/primitives.cuh"
#include "cuda/staged_epilogue.cuh"
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
using WarpTile = StagedTile<Tile::kWarpRows, Tile::kWarpColumns>;

template <typename Tile>
struct ConvResults {
  unsigned char staged[Tile::kThreads / 32][WarpTile<Tile>::kBytes];
  float sums[Tile::kWarpsDown][Tile::kColumns];
  float mean[Tile::kColumns];
};

// Behind the product the ring's memory holds the accumulators.
template <typename Tile>
union ConvShared {
  ConvRing<Tile, kConvStages> ring;
  ConvResults<Tile> results;
};

IK_DEVICE PixelPosition position_of(const ConvGeometry& g, int64_t pixel) {
  if (pixel >= g.pixels) return {0, 0, 0, false};
  return pixel_position(static_cast<int>(pixel), g.image, g.row);
}

IK_DEVICE OutputPixel output_pixel(const Conv2dKernel& args, const PixelPosition& at) {
  if (!at.inside) return {false, 0, 0};
  return {true, at.n * args.y_stride_n + at.p * args.y_stride_h + at.q * args.y_stride_w,
          at.n * args.residual_stride_n + at.p * args.residual_stride_h + at.q * args.residual_stride_w};
}

// The rows of a warp's tile that are pixels.
template <typename Tile>
IK_DEVICE int rows_inside(int64_t first_row, int64_t pixels) {
  const int64_t left = pixels - first_row;
  return static_cast<int>(left < 0 ? 0 : left < Tile::kWarpRows ? left : Tile::kWarpRows);
}

template <typename Tile>
IK_DEVICE float sum_of_warps(const ConvResults<Tile>& shared, int column) {
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < Tile::kWarpsDown; ++w) sum += shared.sums[w][column];
  return sum;
}

template <typename T, typename Tile>
IK_DEVICE void store_statistics(const Conv2dKernel& args, const WarpTile<Tile>& staged, int row_tile, int first_column,
                                int warp_down, int warp_column, ConvResults<Tile>& shared) {
  const int K = args.geometry.K;
  const int64_t first_row = static_cast<int64_t>(row_tile) * Tile::kRows;
  const int64_t left = args.geometry.pixels - first_row;
  const float tile_rows = static_cast<float>(left < Tile::kRows ? left : Tile::kRows);
  const int rows = rows_inside<Tile>(first_row + warp_down * Tile::kWarpRows, args.geometry.pixels);
  float* partials = args.partials + static_cast<int64_t>(row_tile) * 2 * K + first_column;
  float* sums = shared.sums[warp_down] + warp_column;
  static_assert(Tile::kColumns <= Tile::kThreads, "a thread for each column");
  const int column = threadIdx.x;
  const bool has_column = column < Tile::kColumns;
  const bool stores = has_column && first_column + column < K;

  sum_staged<T>(staged, first_column + warp_column, rows, args.epilogue, StagedValue{}, sums);
  __syncthreads();
  if (has_column) shared.mean[column] = sum_of_warps(shared, column) / tile_rows;
  if (stores) partials[column] = shared.mean[column];
  __syncthreads();
  sum_staged<T>(staged, first_column + warp_column, rows, args.epilogue, StagedSquare{shared.mean + warp_column}, sums);
  __syncthreads();
  if (stores) partials[K + column] = sum_of_warps(shared, column);
}

template <typename Product, typename Tile, typename Loader>
__global__ void __launch_bounds__(Tile::kThreads) conv2d_kernel(const __grid_constant__ Conv2dKernel args) {
  IK_DYNAMIC_SHARED(bytes);
  ConvShared<Tile>& shared = *reinterpret_cast<ConvShared<Tile>*>(bytes);
  using T = typename Product::Type;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int warp_down = warp % Tile::kWarpsDown;
  const int warp_row = warp_down * Tile::kWarpRows;
  const int warp_column = warp / Tile::kWarpsDown * Tile::kWarpColumns;
  const int row_tile = args.column_tiles.quotient(blockIdx.x);
  const int first_column = (blockIdx.x - row_tile * args.column_tiles.divisor) * Tile::kColumns;
  const int64_t first_pixel = static_cast<int64_t>(row_tile) * Tile::kRows;

  Accumulators<Tile> acc = {};
  const StageProduct<Product, Tile> product(warp_row, warp_column, lane);
  Loader loader(args.geometry, threadIdx.x, [&](int row) { return position_of(args.geometry, first_pixel + row); });
  WeightLoader<Tile> weights(args.geometry, first_column, threadIdx.x);
  accumulate(args.geometry, loader, weights, shared.ring, product, true, acc);

  __syncthreads();
  const WarpTile<Tile> staged{smem_u32(shared.results.staged[warp])};
#pragma unroll
  for (int f = 0; f < Tile::kFragments; ++f) staged.put(acc[f], f * kFragmentRows, lane);
  __syncwarp();
  store_staged<T>(staged, first_column + warp_column, args.epilogue, [&](int row) {
    return output_pixel(args, position_of(args.geometry, first_pixel + warp_row + row));
  });
  if (args.partials) store_statistics<T>(args, staged, row_tile, first_column, warp_down, warp_column, shared.results);
}

}  // namespace ik::cuda
