// The gradient of the pointwise weight: grad_z [pixels][K] transposed times the activated depthwise output [pixels][C],
// the pixels shared out among blocks whose sums a second kernel adds in a fixed order.
#pragma once
#include "cuda/pixel_product.cuh"
#include "cuda/pixels.cuh"

namespace ik::cuda {

constexpr int kWeightStages = 4;

template <typename T>
struct WeightGradientArgs {
  PixelGrid grid;
  Pixels<const T> left;  // grad_z
  const T* right;        // [pixels][pitch]
  int pixels, K, C, pitch;
  int split_pixels;    // of a block: a multiple of the stage's
  FastDivide columns;  // blocks across C
  FastDivide tiles;    // blocks across K and C
  float* partial;      // [splits][K][pitch]
};

// The part of the product that a block computes.
struct WeightTile {
  int split, row0, column0;
  int begin, end;  // pixels

  template <typename T>
  IK_DEVICE explicit WeightTile(const WeightGradientArgs<T>& args) {
    split = args.tiles.quotient(blockIdx.x);
    const int tile = static_cast<int>(blockIdx.x) - split * static_cast<int>(args.tiles.divisor);
    const int tile_row = args.columns.quotient(tile);
    row0 = tile_row * PixelStage<T>::kElements;
    column0 = (tile - tile_row * static_cast<int>(args.columns.divisor)) * PixelStage<T>::kElements;
    begin = split * args.split_pixels;
    end = args.pixels - begin > args.split_pixels ? begin + args.split_pixels : args.pixels;
  }
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

// Copies stage after stage: a thread takes the same vector of every kRounds-th pixel. kJoined: the pixels of grad_z
// follow each other at one distance and can be copied 16 bytes at a time.
template <typename T, bool kJoined>
struct StageCopies {
  using Stage = PixelStage<T>;
  static constexpr int kRounds = kPixelThreads / Stage::kVectors;
  static constexpr int kCopies = Stage::kPixels / kRounds;
  static_assert(kRounds % Stage::kExchanged == 0, "all copies of a thread exchange vectors alike");

  const WeightGradientArgs<T>& args;
  const char* left;  // of this thread's first copy of the next stage
  const char* right;
  int64_t left_step, right_step;  // bytes from a copy to the next
  int pixel, end;
  int row;
  int left_bytes, right_bytes;
  uint32_t target;  // in stage 0 of the left operand
  uint32_t stage = 0;

  IK_DEVICE StageCopies(const WeightGradientArgs<T>& given, const WeightTile& tile, uint32_t shared, int thread)
      : args(given), end(tile.end) {
    const int vector = thread % Stage::kVectors;
    const int first = thread / Stage::kVectors;
    const int column = tile.column0 + vector * Stage::kVectorElements;
    row = tile.row0 + vector * Stage::kVectorElements;
    pixel = tile.begin + first;
    left_bytes = bytes_before<T>(row, args.K);
    right_bytes = bytes_before<T>(column, args.C);
    left_step = args.left.stride_w * kRounds * Stage::kElementBytes;
    right_step = static_cast<int64_t>(args.pitch) * kRounds * Stage::kElementBytes;
    left = reinterpret_cast<const char*>(args.left.data + pixel * args.left.stride_w + row);
    right = reinterpret_cast<const char*>(args.right + static_cast<int64_t>(pixel) * args.pitch + column);
    target = shared + Stage::offset(first, vector);
  }

  IK_DEVICE void next() {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const bool inside = pixel < end;
      const uint32_t to = target + stage + i * kRounds * Stage::kPitch;
      if constexpr (kJoined) {
        cp_async16(to, left, inside ? left_bytes : 0);
        left += left_step;
      } else {
        const T* from = inside ? args.left.at(args.grid.at(pixel)) + row : args.left.data;
        sts128(to, gather_vector(from, inside ? left_bytes : 0));
      }
      cp_async16(to + kWeightStages * Stage::kBytes, right, inside ? right_bytes : 0);
      right += right_step;
      pixel += kRounds;
    }
    stage = stage == (kWeightStages - 1) * Stage::kBytes ? 0 : stage + Stage::kBytes;
  }
};

template <typename T>
IK_DEVICE void store_sums(const WeightGradientArgs<T>& args, const WeightTile& tile, int row, int column,
                          const PixelAccumulators& acc) {
  float* partial = args.partial + static_cast<int64_t>(tile.split) * args.K * args.pitch;
#pragma unroll
  for (int i = 0; i < 2 * kPixelFragments; ++i) {
    const int k = row + i * (kFragmentRows / 2);
    if (k >= args.K) continue;
#pragma unroll
    for (int j = 0; j < kPixelBlocks; ++j) {
      const int c = column + j * kBlockColumns;
      if (c >= args.C) continue;
      const float* sums = &acc[i / 2][4 * j + i % 2 * 2];
      *reinterpret_cast<float2*>(partial + static_cast<int64_t>(k) * args.pitch + c) = make_float2(sums[0], sums[1]);
    }
  }
}

template <typename Product, bool kJoined>
__global__ void __launch_bounds__(kPixelThreads, 2)
    weight_gradient_kernel(WeightGradientArgs<typename Product::Type> args) {
  using T = typename Product::Type;
  using Stage = PixelStage<T>;
  IK_DYNAMIC_SHARED(shared);
  const WeightTile tile(args);
  const int steps = (tile.end - tile.begin + Stage::kPixels - 1) / Stage::kPixels;
  const uint32_t left = smem_u32(shared);
  const uint32_t right = left + kWeightStages * Stage::kBytes;
  StageCopies<T, kJoined> copies(args, tile, left, threadIdx.x);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int warp_row = warp / kPixelWarpsAcross * kPixelWarpRows;
  const int warp_column = warp % kPixelWarpsAcross * kPixelWarpColumns;
  const PixelProduct<Product> product(warp_row, warp_column, lane);
  PixelAccumulators acc = {};
#pragma unroll
  for (int step = 0; step < kWeightStages - 1; ++step) {
    if (step < steps) copies.next();
    cp_async_commit();
  }
  uint32_t stage = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kWeightStages - 2>();
    __syncthreads();
    copies.next();  // behind the last pixel: zeros that nobody reads
    cp_async_commit();
    product.add(acc, left + stage, right + stage);
    stage = stage == (kWeightStages - 1) * Stage::kBytes ? 0 : stage + Stage::kBytes;
  }
  cp_async_wait<0>();
  store_sums(args, tile, tile.row0 + warp_row + lane / 4, tile.column0 + warp_column + lane % 4 * 2, acc);
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
