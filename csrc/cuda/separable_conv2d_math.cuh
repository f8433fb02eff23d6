// What the separable kernels know of a number format: 16-byte vectors of channels, and the product of two tiles whose
// rows are 128 bytes of channels in shared memory, vector v of row r lying at place v ^ (r % 8).
#pragma once
#include <cmath>
#include <type_traits>

#include "cuda/activation.cuh"
#include "cuda/primitives.cuh"

namespace ik::cuda::separable {

enum class Math { kBf16, kFp16, kTf32, kFp32 };

constexpr int kRowBytes = 128;
constexpr int kRowVectors = 8;

template <Math kMath>
struct Format {
  static constexpr bool kIsFloat = kMath == Math::kTf32 || kMath == Math::kFp32;
  using Type = std::conditional_t<kIsFloat, float, std::conditional_t<kMath == Math::kBf16, bf16, fp16>>;
  static constexpr int kVector = 16 / static_cast<int>(sizeof(Type));           // channels of 16 bytes
  static constexpr int kChannels = kRowBytes / static_cast<int>(sizeof(Type));  // channels of a tile's row

  template <int kWords>
  static IK_DEVICE void unpack(const uint32_t (&words)[kWords], float (&values)[kWords * kVector / 4]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kIsFloat) {
        values[i] = __uint_as_float(words[i]);
      } else {
        const float2 pair = Pair<Type>::unpack(words[i]);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
      }
    }
  }
  static IK_DEVICE void unpack(const uint4& bits, float (&values)[kVector]) {
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
    unpack(words, values);
  }
  template <int kWords>
  static IK_DEVICE void pack(const float (&values)[kWords * kVector / 4], uint32_t (&words)[kWords]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kMath == Math::kTf32) {
        words[i] = to_tf32(values[i]);
      } else if constexpr (kMath == Math::kFp32) {
        words[i] = __float_as_uint(values[i]);
      } else {
        words[i] = Pair<Type>::pack(values[2 * i], values[2 * i + 1]);
      }
    }
  }
  static IK_DEVICE uint4 pack(const float (&values)[kVector]) {
    uint32_t words[4];
    pack(values, words);
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
  // The bits of values stored as they are, without TF32's rounding.
  static IK_DEVICE uint4 pack_storage(const float (&values)[kVector]) {
    if constexpr (kMath == Math::kTf32) return Format<Math::kFp32>::pack(values);
    return pack(values);
  }
  // A bound for at_least: ReLU's zero, or what is not above any number.
  static IK_DEVICE uint32_t lower_bound(bool relu) {
    const float value = relu ? 0.0f : -INFINITY;
    if constexpr (kIsFloat) {
      return __float_as_uint(value);
    } else {
      return Pair<Type>::pack(value, value);
    }
  }
  // The larger of a word's numbers and the bound; a NaN stays NaN.
  static IK_DEVICE uint32_t at_least(uint32_t word, uint32_t bound) {
    if constexpr (kIsFloat) {
      return __uint_as_float(word) < __uint_as_float(bound) ? bound : word;
    } else {
      return Pair<Type>::max(word, bound);
    }
  }
};

IK_DEVICE uint32_t swizzled(int row, int vector) { return row * kRowBytes + ((vector ^ (row & 7)) << 4); }

// One warp's part of a product: kRowTiles x 16 rows of A by kColumnTiles x 8 rows of B, summed into the epilogue's
// fragments.
template <Math kMath, int kRowTiles, int kColumnTiles>
struct WarpProduct {
  static_assert(kColumnTiles % 2 == 0, "one ldmatrix loads two tiles of B");
  static constexpr int kSteps = kRowBytes / 32;
  using Sums = float[kRowTiles][4 * kColumnTiles];

  // a, b: addresses of this warp's first rows, multiples of 1024 bytes.
  static IK_DEVICE void add(Sums& sums, uint32_t a, uint32_t b, int lane) {
    if constexpr (kMath == Math::kFp32) {
      add_plain(sums, a, b, lane);
    } else {
      add_fragments(sums, a, b, lane);
    }
  }

 private:
  static IK_DEVICE void add_fragments(Sums& sums, uint32_t a, uint32_t b, int lane) {
    const uint32_t a_lane = a + swizzled(lane & 15, lane >> 4);
    const uint32_t b_lane = b + swizzled((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t rows[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) ldmatrix_x4(rows[i], (a_lane ^ (step * 32)) + i * 16 * kRowBytes);
#pragma unroll
      for (int pair = 0; pair < kColumnTiles / 2; ++pair) {
        uint32_t columns[4];
        ldmatrix_x4(columns, (b_lane ^ (step * 32)) + pair * 16 * kRowBytes);
        if constexpr (kMath == Math::kTf32) {
#pragma unroll
          for (int i = 0; i < 4; ++i) columns[i] = to_tf32(__uint_as_float(columns[i]));
        }
        const uint32_t first[2] = {columns[0], columns[1]};
        const uint32_t second[2] = {columns[2], columns[3]};
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          multiply(&sums[i][8 * pair], rows[i], first);
          multiply(&sums[i][8 * pair + 4], rows[i], second);
        }
      }
    }
  }
  static IK_DEVICE void multiply(float* sums, const uint32_t (&rows)[4], const uint32_t (&columns)[2]) {
    float tile[4] = {sums[0], sums[1], sums[2], sums[3]};
    if constexpr (kMath == Math::kBf16) mma_bf16(tile, rows, columns);
    if constexpr (kMath == Math::kFp16) mma_fp16(tile, rows, columns);
    if constexpr (kMath == Math::kTf32) mma_tf32(tile, rows, columns);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = tile[i];
  }
  // Strict float32: the same sums in the same places by ordinary multiply-adds.
  static IK_DEVICE void add_plain(Sums& sums, uint32_t a, uint32_t b, int lane) {
    const int row = lane >> 2;
    const int column = 2 * (lane & 3);
#pragma unroll 1
    for (int vector = 0; vector < kRowVectors; ++vector) {
      float rows[kRowTiles][2][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Format<Math::kFp32>::unpack(lds128(a + i * 16 * kRowBytes + half * 8 * kRowBytes + swizzled(row, vector)),
                                      rows[i][half]);
        }
      }
#pragma unroll
      for (int j = 0; j < 2 * kColumnTiles; ++j) {
        float columns[4];
        Format<Math::kFp32>::unpack(lds128(b + (j >> 1) * 8 * kRowBytes + swizzled(column + (j & 1), vector)), columns);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float& sum = sums[i][4 * (j >> 1) + 2 * half + (j & 1)];
              sum = fmaf(rows[i][half][k], columns[k], sum);
            }
          }
        }
      }
    }
  }
};

}  // namespace ik::cuda::separable
