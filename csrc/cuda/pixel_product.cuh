// A product over pixels: left [pixels][rows] transposed times right [pixels][columns]. A stage in shared memory holds
// some pixels of 128 rows and of 128 columns, each pixel's elements side by side.
#pragma once
#include "cuda/tile_product.cuh"

namespace ik::cuda {

template <typename T>
struct PixelStage {
  static constexpr int kElements = 128;  // of a pixel, in each operand
  static constexpr int kElementBytes = static_cast<int>(sizeof(T));
  static constexpr int kPitch = kElements * kElementBytes;
  static constexpr int kVectors = kPitch / kVectorBytes;
  static constexpr int kVectorElements = kVectorBytes / kElementBytes;
  static constexpr int kBytes = 8192;
  static constexpr int kPixels = kBytes / kPitch;
  static constexpr int kExchanged = sizeof(T) == 2 ? 8 : 4;  // pixels until the exchange of vectors repeats

  // Where vector v of a pixel begins: what one instruction reads of several pixels lies in different banks.
  static IK_DEVICE uint32_t offset(int pixel, int vector) {
    const int exchange = pixel % kExchanged * (8 / kExchanged);
    return static_cast<uint32_t>(pixel * kPitch + (vector ^ exchange) * kVectorBytes);
  }
};

constexpr int kPixelThreads = 128;
constexpr int kPixelWarpRows = 64;  // two warps down, two across
constexpr int kPixelWarpColumns = 64;
constexpr int kPixelWarpsAcross = 2;
constexpr int kPixelFragments = kPixelWarpRows / kFragmentRows;
constexpr int kPixelBlocks = kPixelWarpColumns / kBlockColumns;
using PixelAccumulators = float[kPixelFragments][4 * kPixelBlocks];

// bf16 and fp16: ldmatrix transposes.
template <typename Product>
struct PixelProduct {
  using T = typename Product::Type;
  using Stage = PixelStage<T>;
  static constexpr int kStep = 16;  // pixels of an mma
  uint32_t left;                    // of this lane's row of the matrices, in a stage
  uint32_t right;
  uint32_t exchange;

  IK_DEVICE PixelProduct(int warp_row, int warp_column, int lane) {
    // Matrices 0..3 of the left operand: rows +0 and +8 of pixels 0..7, then of 8..15; of the right one: pixels first.
    const int left_pixel = lane % 8 + lane / 16 * 8;
    const int right_pixel = lane % 8 + lane / 8 % 2 * 8;
    left = left_pixel * Stage::kPitch;
    right = right_pixel * Stage::kPitch;
    exchange = static_cast<uint32_t>(lane % 8) * kVectorBytes;
    left_vector = (warp_row / 8 + lane / 8 % 2) * kVectorBytes;
    right_vector = (warp_column / 8 + lane / 16) * kVectorBytes;
  }

  IK_DEVICE void add(PixelAccumulators& acc, uint32_t left_stage, uint32_t right_stage) const {
#pragma unroll
    for (int step = 0; step < Stage::kPixels / kStep; ++step) {
      const uint32_t pixels = step * kStep * Stage::kPitch;
      uint32_t a[kPixelFragments][4];
      uint32_t b[kPixelBlocks / 2][4];
#pragma unroll
      for (int i = 0; i < kPixelFragments; ++i) {
        ldmatrix_x4_trans(a[i], left_stage + left + pixels + ((left_vector + i * 2 * kVectorBytes) ^ exchange));
      }
#pragma unroll
      for (int j = 0; j < kPixelBlocks / 2; ++j) {
        ldmatrix_x4_trans(b[j], right_stage + right + pixels + ((right_vector + j * 2 * kVectorBytes) ^ exchange));
      }
#pragma unroll
      for (int i = 0; i < kPixelFragments; ++i) {
#pragma unroll
        for (int j = 0; j < kPixelBlocks; ++j) {
          const uint32_t column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          float d[4] = {acc[i][4 * j], acc[i][4 * j + 1], acc[i][4 * j + 2], acc[i][4 * j + 3]};
          Product::multiply(d, a[i], column);
#pragma unroll
          for (int e = 0; e < 4; ++e) acc[i][4 * j + e] = d[e];
        }
      }
    }
  }

 private:
  uint32_t left_vector;
  uint32_t right_vector;
};

// TF32: ldmatrix cannot transpose 32-bit elements, plain loads take them where mma wants them.
template <>
struct PixelProduct<Tf32Product> {
  using Stage = PixelStage<float>;
  static constexpr int kStep = 8;
  uint32_t left;  // of this lane's first element within its vector, in a stage
  uint32_t right;
  uint32_t left_vector;
  uint32_t right_vector;
  uint32_t exchange;

  IK_DEVICE PixelProduct(int warp_row, int warp_column, int lane) {
    const int pixel = lane % 4;
    const int group = lane / 4;
    left = pixel * Stage::kPitch + group % 4 * Stage::kElementBytes;
    right = left;
    left_vector = (warp_row + group) / 4 * kVectorBytes;
    right_vector = (warp_column + group) / 4 * kVectorBytes;
    exchange = 2 * pixel * kVectorBytes;
  }

  // Four pixels further lies at the same places of other rows.
  IK_DEVICE uint32_t load_left(uint32_t stage, int pixel, int row) const {
    return lds32(stage + left + pixel * Stage::kPitch + ((left_vector + row * Stage::kElementBytes) ^ exchange));
  }
  IK_DEVICE uint32_t load_right(uint32_t stage, int pixel, int column) const {
    return lds32(stage + right + pixel * Stage::kPitch + ((right_vector + column * Stage::kElementBytes) ^ exchange));
  }

  IK_DEVICE void add(PixelAccumulators& acc, uint32_t left_stage, uint32_t right_stage) const {
#pragma unroll
    for (int step = 0; step < Stage::kPixels; step += kStep) {
      uint32_t b[kPixelBlocks][2];
#pragma unroll
      for (int j = 0; j < kPixelBlocks; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) b[j][e] = load_right(right_stage, step + e * 4, j * kBlockColumns);
#pragma unroll
        for (int e = 0; e < 2; ++e) b[j][e] = to_tf32(__uint_as_float(b[j][e]));
      }
#pragma unroll
      for (int i = 0; i < kPixelFragments; ++i) {
        uint32_t a[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) a[e] = load_left(left_stage, step + e / 2 * 4, i * kFragmentRows + e % 2 * 8);
        Tf32Product::prepare(a);
#pragma unroll
        for (int j = 0; j < kPixelBlocks; ++j) {
          float d[4] = {acc[i][4 * j], acc[i][4 * j + 1], acc[i][4 * j + 2], acc[i][4 * j + 3]};
          Tf32Product::multiply(d, a, b[j]);
#pragma unroll
          for (int e = 0; e < 4; ++e) acc[i][4 * j + e] = d[e];
        }
      }
    }
  }
};

// Float FMAs, with the accumulators where the tensor cores would leave them.
template <>
struct PixelProduct<Fp32Product> {
  using Stage = PixelStage<float>;
  static constexpr int kExchanged = Stage::kExchanged;
  uint32_t left;  // row g and column 2 q of pixel 0
  uint32_t right;

  IK_DEVICE PixelProduct(int warp_row, int warp_column, int lane)
      : left((warp_row + lane / 4) * Stage::kElementBytes),
        right((warp_column + lane % 4 * 2) * Stage::kElementBytes) {}

  IK_DEVICE void add(PixelAccumulators& acc, uint32_t left_stage, uint32_t right_stage) const {
#pragma unroll 1
    for (int first = 0; first < Stage::kPixels; first += kExchanged) {
      const uint32_t a_stage = left_stage + left + first * Stage::kPitch;
      const uint32_t b_stage = right_stage + right + first * Stage::kPitch;
#pragma unroll
      for (int pixel = 0; pixel < kExchanged; ++pixel) add_pixel(acc, a_stage, b_stage, pixel);
    }
  }

 private:
  // Eight rows or columns are two vectors: the exchange swaps whole blocks of eight, by constants.
  static IK_DEVICE void add_pixel(PixelAccumulators& acc, uint32_t a_stage, uint32_t b_stage, int pixel) {
    constexpr int kBlockBytes = 2 * kVectorBytes;
    float a[2 * kPixelFragments];
    float b[2 * kPixelBlocks];
#pragma unroll
    for (int i = 0; i < 2 * kPixelFragments; ++i) {
      a[i] = __uint_as_float(lds32(a_stage + pixel * Stage::kPitch + (i ^ pixel) * kBlockBytes));
    }
#pragma unroll
    for (int j = 0; j < kPixelBlocks; ++j) {
      const uint2 pair = lds64(b_stage + pixel * Stage::kPitch + (j ^ pixel) * kBlockBytes);
      b[2 * j] = __uint_as_float(pair.x);
      b[2 * j + 1] = __uint_as_float(pair.y);
    }
#pragma unroll
    for (int i = 0; i < 2 * kPixelFragments; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * kPixelBlocks; ++j) {
        float& sum = acc[i / 2][j / 2 * 4 + i % 2 * 2 + j % 2];
        sum = fmaf(a[i], b[j], sum);
      }
    }
  }
};

}  // namespace ik::cuda
