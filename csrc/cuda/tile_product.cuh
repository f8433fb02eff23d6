// The product of one pipeline stage on the tensor cores of sm_80, or with float FMAs. A stage holds rows of 64 bytes of
// the reduced dimension, of the left operand (pixels) and of the right one (output channels) alike.
#pragma once
#include "cuda/epilogue.cuh"
#include "cuda/primitives.cuh"

namespace ik::cuda {

constexpr int kVectorBytes = 16;
constexpr int kStepVectors = 4;
constexpr int kStepBytes = kVectorBytes * kStepVectors;

// Where vector v of a row begins. Eight rows, as one matrix of ldmatrix reads them, cover all banks.
IK_DEVICE uint32_t stage_offset(int row, int vector) {
  return static_cast<uint32_t>(row * kStepBytes + (vector ^ ((row >> 1) & 3)) * kVectorBytes);
}

template <int kRowsValue, int kColumnsValue, int kWarpsDownValue, int kWarpsAcrossValue>
struct TileShape {
  static constexpr int kRows = kRowsValue;        // pixels
  static constexpr int kColumns = kColumnsValue;  // output channels
  static constexpr int kWarpsDown = kWarpsDownValue;
  static constexpr int kWarpsAcross = kWarpsAcrossValue;
  static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
  static constexpr int kWarpRows = kRows / kWarpsDown;
  static constexpr int kWarpColumns = kColumns / kWarpsAcross;
  static constexpr int kFragments = kWarpRows / kFragmentRows;
  static constexpr int kBlocks = kWarpColumns / kBlockColumns;
  static constexpr int kLeftBytes = kRows * kStepBytes;
  static constexpr int kRightBytes = kColumns * kStepBytes;
  static_assert(kWarpRows % kFragmentRows == 0, "a warp holds whole fragments");
  static_assert(kWarpColumns % (2 * kBlockColumns) == 0, "ldmatrix_x4 reads two blocks of columns");
};

template <typename Tile>
using Accumulators = float[Tile::kFragments][4 * Tile::kBlocks];

struct Bf16Product {
  using Type = bf16;
  static constexpr const char* kName = "bf16";
  static IK_DEVICE void prepare(uint32_t (&)[4]) {}
  static IK_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_bf16(d, a, b); }
};

struct Fp16Product {
  using Type = fp16;
  static constexpr const char* kName = "fp16";
  static IK_DEVICE void prepare(uint32_t (&)[4]) {}
  static IK_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_fp16(d, a, b); }
};

struct Tf32Product {
  using Type = float;
  static constexpr const char* kName = "tf32";
  // The tensor cores would truncate.
  static IK_DEVICE void prepare(uint32_t (&r)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = to_tf32(__uint_as_float(r[i]));
  }
  static IK_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_tf32(d, a, b); }
};

// What a warp does with a stage. A lane reads kLeftRows rows of the left operand, `left_row` and every kLeftRowStep-th
// behind it, and columns of the right one; `left` and `right` are their offsets in a stage. Moving on by whole vectors
// flips bits of an offset, since the swizzle only exchanges vectors.
template <typename Product, typename Tile>
struct StageProduct {
  static constexpr int kLeftRows = Tile::kFragments;
  static constexpr int kLeftRowStep = kFragmentRows;
  static constexpr int kPasses = 2;
  int left_row;
  int left_vector;
  uint32_t left;
  uint32_t right;

  IK_DEVICE StageProduct(int warp_row, int warp_column, int lane)
      : left_row(warp_row + lane % 16),
        left_vector(lane / 16),
        left(stage_offset(left_row, left_vector)),
        right(stage_offset(warp_column + lane % 8 + lane / 16 * 8, lane / 8 % 2)) {}

  IK_DEVICE void add(Accumulators<Tile>& acc, uint32_t left_stage, uint32_t right_stage) const {
    add_rows(acc, right_stage,
             [&](int i, uint32_t further) { return (left_stage + (left ^ further)) + i * kLeftRowStep * kStepBytes; });
  }

  // left_address(i, further): where row i is, `further` bytes on.
  template <typename LeftAddress>
  IK_DEVICE void add_rows(Accumulators<Tile>& acc, uint32_t right_stage, LeftAddress left_address) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const uint32_t further = pass * 2 * kVectorBytes;
      uint32_t a[Tile::kFragments][4];
      uint32_t b[Tile::kBlocks / 2][4];
#pragma unroll
      for (int i = 0; i < Tile::kFragments; ++i) {
        ldmatrix_x4(a[i], left_address(i, further));
        Product::prepare(a[i]);
      }
#pragma unroll
      for (int j = 0; j < Tile::kBlocks / 2; ++j) {
        ldmatrix_x4(b[j], (right_stage + (right ^ further)) + j * 2 * kBlockColumns * kStepBytes);
        Product::prepare(b[j]);
      }
#pragma unroll
      for (int i = 0; i < Tile::kFragments; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::kBlocks; ++j) {
          const uint32_t column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          multiply(acc[i], j, a[i], column);
        }
      }
    }
  }

 private:
  static IK_DEVICE void multiply(float (&acc)[4 * Tile::kBlocks], int j, const uint32_t (&a)[4],
                                 const uint32_t (&b)[2]) {
    float d[4] = {acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]};
    Product::multiply(d, a, b);
#pragma unroll
    for (int e = 0; e < 4; ++e) acc[4 * j + e] = d[e];
  }
};

// Float FMAs, with the accumulators where the tensor cores would leave them.
struct Fp32Product {
  using Type = float;
  static constexpr const char* kName = "fp32";
};

template <typename Tile>
struct StageProduct<Fp32Product, Tile> {
  static constexpr int kLeftRows = 2 * Tile::kFragments;
  static constexpr int kLeftRowStep = kFragmentRows / 2;
  int left_row;
  int left_vector;
  uint32_t left;
  uint32_t right;

  IK_DEVICE StageProduct(int warp_row, int warp_column, int lane)
      : left_row(warp_row + lane / 4),
        left_vector(0),
        left(stage_offset(left_row, left_vector)),
        right(stage_offset(warp_column + lane % 4 * 2, 0)) {}

  IK_DEVICE void add(Accumulators<Tile>& acc, uint32_t left_stage, uint32_t right_stage) const {
    add_rows(acc, right_stage,
             [&](int i, uint32_t further) { return (left_stage + (left ^ further)) + i * kLeftRowStep * kStepBytes; });
  }

  template <typename LeftAddress>
  IK_DEVICE void add_rows(Accumulators<Tile>& acc, uint32_t right_stage, LeftAddress left_address) const {
#pragma unroll
    for (int v = 0; v < kStepVectors; ++v) {
      const uint32_t further = v * kVectorBytes;
      uint4 a[kLeftRows];
#pragma unroll
      for (int i = 0; i < kLeftRows; ++i) a[i] = lds128(left_address(i, further));
#pragma unroll
      for (int j = 0; j < Tile::kBlocks; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const uint4 b = lds128((right_stage + (right ^ further)) + (j * kBlockColumns + e) * kStepBytes);
#pragma unroll
          for (int i = 0; i < kLeftRows; ++i) add_dot(acc[i / 2][4 * j + i % 2 * 2 + e], a[i], b);
        }
      }
    }
  }

 private:
  static IK_DEVICE void add_dot(float& sum, const uint4& a, const uint4& b) {
    sum = fmaf(__uint_as_float(a.x), __uint_as_float(b.x), sum);
    sum = fmaf(__uint_as_float(a.y), __uint_as_float(b.y), sum);
    sum = fmaf(__uint_as_float(a.z), __uint_as_float(b.z), sum);
    sum = fmaf(__uint_as_float(a.w), __uint_as_float(b.w), sum);
  }
};

}  // namespace ik::cuda
