// The gradient of the pointwise weight: grad_z [pixels][K] transposed times act(d) [pixels][C], the pixels shared out
// among blocks whose sums a second kernel adds in a fixed order.
#pragma once
#include "cuda/pixel_product.cuh"
#include "cuda/pixels.cuh"

namespace ik::cuda {

constexpr int kWeightStages = 4;

template <typename T>
struct WeightGradientArgs {
  PixelGrid grid;
  Pixels<const T> grad_z;
  const T* d;  // [pixels][pitch]
  Activation activation;
  int pixels, K, C, pitch;
  int split_pixels;    // of a block: a multiple of the stage's
  FastDivide columns;  // blocks across C
  FastDivide tiles;    // blocks across K and C
  float* partial;      // [splits][K][pitch]
};

// What this thread copies of a stage: the same vector of every kPixelThreads / kVectors-th pixel.
template <typename T>
struct StageCopy {
  using Stage = PixelStage<T>;
  static constexpr int kRounds = kPixelThreads / Stage::kVectors;  // pixels of one round
  static constexpr int kCopies = Stage::kPixels / kRounds;
  int vector;
  int pixel;

  IK_DEVICE explicit StageCopy(int thread) : vector(thread % Stage::kVectors), pixel(thread / Stage::kVectors) {}

  IK_DEVICE uint32_t target(int copy) const { return Stage::offset(pixel + copy * kRounds, vector); }
};

// Bytes of a vector from `element` on that lie before `count`.
template <typename T>
IK_DEVICE int bytes_before(int element, int count) {
  const int left = (count - element) * static_cast<int>(sizeof(T));
  return left < 0 ? 0 : left > kVectorBytes ? kVectorBytes : left;
}

template <typename T>
IK_DEVICE uint4 gather_vector(const T* from, int bytes) {
  constexpr int kElements = kVectorBytes / static_cast<int>(sizeof(T));
  T values[kElements];
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    values[i] = i * static_cast<int>(sizeof(T)) < bytes ? from[i] : Element<T>::from_float(0.0f);
  }
  uint4 bits;
  memcpy(&bits, values, sizeof(bits));
  return bits;
}

template <typename Product, bool kVectors>
__global__ void __launch_bounds__(kPixelThreads, 2)
    weight_gradient_kernel(WeightGradientArgs<typename Product::Type> args) {
  using T = typename Product::Type;
  using Stage = PixelStage<T>;
  using Copy = StageCopy<T>;
  IK_DYNAMIC_SHARED(shared);
  const int thread = threadIdx.x;
  const int split = args.tiles.quotient(blockIdx.x);
  const int tile = static_cast<int>(blockIdx.x) - split * static_cast<int>(args.tiles.divisor);
  const int tile_row = args.columns.quotient(tile);
  const int row0 = tile_row * Stage::kElements;
  const int column0 = (tile - tile_row * static_cast<int>(args.columns.divisor)) * Stage::kElements;
  const int begin = split * args.split_pixels;
  const int end = args.pixels - begin > args.split_pixels ? begin + args.split_pixels : args.pixels;
  const int steps = (end - begin + Stage::kPixels - 1) / Stage::kPixels;

  const uint32_t left0 = smem_u32(shared);
  const uint32_t right0 = left0 + kWeightStages * Stage::kBytes;
  const Copy copy(thread);
  const int row = row0 + copy.vector * Stage::kVectorElements;
  const int column = column0 + copy.vector * Stage::kVectorElements;
  const int row_bytes = bytes_before<T>(row, args.K);
  const int column_bytes = bytes_before<T>(column, args.C);

  const auto load = [&](int step) {
    const uint32_t stage = step % kWeightStages * Stage::kBytes;
#pragma unroll
    for (int i = 0; i < Copy::kCopies; ++i) {
      const int m = begin + step * Stage::kPixels + copy.pixel + i * Copy::kRounds;
      const bool inside = m < end;
      const uint32_t target = stage + copy.target(i);
      const T* left = inside && row_bytes > 0 ? args.grad_z.at(args.grid.at(m)) + row : args.grad_z.data;
      if constexpr (kVectors) {
        cp_async16(left0 + target, left, inside ? row_bytes : 0);
      } else {
        sts128(left0 + target, gather_vector(left, inside ? row_bytes : 0));
      }
      const T* right = inside && column_bytes > 0 ? args.d + static_cast<int64_t>(m) * args.pitch + column : args.d;
      cp_async16(right0 + target, right, inside ? column_bytes : 0);
    }
  };

  const int warp = thread / 32;
  const int lane = thread % 32;
  const int warp_row = warp / 4 * kPixelWarpRows;
  const int warp_column = warp % 4 * kPixelWarpColumns;
  const PixelProduct<Product> product(warp_row, warp_column, lane);
  PixelAccumulators acc = {};
#pragma unroll
  for (int step = 0; step < kWeightStages - 1; ++step) {
    if (step < steps) load(step);
    cp_async_commit();
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kWeightStages - 2>();
    __syncthreads();
    if (step + kWeightStages - 1 < steps) load(step + kWeightStages - 1);
    cp_async_commit();
    const uint32_t stage = step % kWeightStages * Stage::kBytes;
    product.add(acc, left0 + stage, right0 + stage, args.activation);
  }

  float* partial = args.partial + static_cast<int64_t>(split) * args.K * args.pitch;
#pragma unroll
  for (int i = 0; i < 2 * kPixelFragments; ++i) {
    const int k = row0 + warp_row + i * (kFragmentRows / 2) + lane / 4;
    if (k >= args.K) continue;
#pragma unroll
    for (int j = 0; j < kPixelBlocks; ++j) {
      const int c = column0 + warp_column + j * kBlockColumns + lane % 4 * 2;
      if (c >= args.C) continue;
      const float* sums = &acc[i / 2][4 * j + i % 2 * 2];
      *reinterpret_cast<float2*>(partial + static_cast<int64_t>(k) * args.pitch + c) = make_float2(sums[0], sums[1]);
    }
  }
}

struct WeightSums {
  const float* partial;  // [splits][K][pitch]
  int splits, C, pitch;
  int64_t count;      // K * C
  void* grad_weight;  // [K][C]
};

constexpr int kWeightSumThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kWeightSumThreads) weight_sums_kernel(WeightSums args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWeightSumThreads + threadIdx.x;
  if (i >= args.count) return;
  const int64_t k = i / args.C;
  const float* from = args.partial + k * args.pitch + (i - k * args.C);
  const int64_t split = args.count / args.C * args.pitch;
  double sum = 0.0;
#pragma unroll 8
  for (int s = 0; s < args.splits; ++s) sum += from[s * split];
  static_cast<T*>(args.grad_weight)[i] = Element<T>::from_float(static_cast<float>(sum));
}

}  // namespace ik::cuda
