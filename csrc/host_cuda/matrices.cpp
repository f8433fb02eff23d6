// ldmatrix, stmatrix and mma.sync: the layouts of their fragments.
#include "host_cuda/machine.h"
#include "host_cuda/memory.h"
#include "host_cuda/product.h"

namespace ik::host_cuda {
namespace {

constexpr int kRows = 8;
constexpr size_t kRowBytes = 16;
using Matrix = uint16_t[kRows][kRows];

struct MatrixArguments {
  uint32_t* r;
  uint32_t row;
  int matrices;
  bool transpose;
};

MatrixArguments& matrix_arguments(void** arguments, int lane) {
  return *static_cast<MatrixArguments*>(arguments[lane]);
}

// The pair of elements that a lane holds.
void pair_of_lane(Matrix& matrix, int lane, bool transpose, uint16_t* (&pair)[2]) {
  const int row = lane / 4;
  const int column = 2 * (lane % 4);
  for (int i = 0; i < 2; ++i) pair[i] = transpose ? &matrix[column + i][row] : &matrix[row][column + i];
}

void load_all(void** arguments, uint32_t) {
  const MatrixArguments& first = matrix_arguments(arguments, 0);
  for (int i = 0; i < first.matrices; ++i) {
    Matrix matrix;
    for (int row = 0; row < kRows; ++row) {
      memcpy(matrix[row], shared_pointer(matrix_arguments(arguments, kRows * i + row).row), kRowBytes);
    }
    for (int lane = 0; lane < 32; ++lane) {
      uint16_t* pair[2];
      pair_of_lane(matrix, lane, first.transpose, pair);
      matrix_arguments(arguments, lane).r[i] = static_cast<uint32_t>(*pair[0] | *pair[1] << 16);
    }
  }
}

void store_all(void** arguments, uint32_t) {
  const MatrixArguments& first = matrix_arguments(arguments, 0);
  for (int i = 0; i < first.matrices; ++i) {
    Matrix matrix;
    for (int lane = 0; lane < 32; ++lane) {
      uint16_t* pair[2];
      pair_of_lane(matrix, lane, first.transpose, pair);
      const uint32_t bits = matrix_arguments(arguments, lane).r[i];
      *pair[0] = static_cast<uint16_t>(bits);
      *pair[1] = static_cast<uint16_t>(bits >> 16);
    }
    for (int row = 0; row < kRows; ++row) {
      memcpy(shared_pointer(matrix_arguments(arguments, kRows * i + row).row), matrix[row], kRowBytes);
    }
  }
}

void check_row(uint32_t row, int matrices, bool writes, const Site& site) {
  if (!checked || running->lane >= kRows * matrices) return;
  check_alignment(shared_pointer(row), kRowBytes, "a matrix row", site);
  check_shared(row, kRowBytes, writes, running_thread_accessor(), site);
}

struct ProductArguments {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  Operand operand;
};

constexpr int kM = 16;
constexpr int kN = 8;

// Register i of a lane's A fragment: rows lane / 4 (+ 8 for odd i), columns in pairs (TF32: single ones).
struct Fragments {
  double a[kM][16];
  double b[16][kN];
  int depth;
};

void gather_pairs(const ProductArguments& lane, int row, int column, Fragments& all) {
  for (int i = 0; i < 4; ++i) {
    for (int half = 0; half < 2; ++half) {
      const uint16_t bits = static_cast<uint16_t>(lane.a[i] >> (16 * half));
      all.a[row + 8 * (i & 1)][2 * column + 8 * (i >> 1) + half] = operand_value(bits, lane.operand);
    }
  }
  for (int i = 0; i < 2; ++i) {
    for (int half = 0; half < 2; ++half) {
      const uint16_t bits = static_cast<uint16_t>(lane.b[i] >> (16 * half));
      all.b[2 * column + 8 * i + half][row] = operand_value(bits, lane.operand);
    }
  }
}

void gather_tf32(const ProductArguments& lane, int row, int column, Fragments& all) {
  for (int i = 0; i < 4; ++i) all.a[row + 8 * (i & 1)][column + 4 * (i >> 1)] = tf32_value(lane.a[i]);
  for (int i = 0; i < 2; ++i) all.b[column + 4 * i][row] = tf32_value(lane.b[i]);
}

void multiply_all(void** arguments, uint32_t) {
  const bool tf32 = static_cast<ProductArguments*>(arguments[0])->operand == Operand::kTf32;
  Fragments all;
  double d[kM][kN];
  const auto accumulator = [](int lane, int i, int* row, int* column) {
    *row = lane / 4 + 8 * (i >> 1);
    *column = 2 * (lane % 4) + (i & 1);
  };
  int row, column;
  for (int lane = 0; lane < 32; ++lane) {
    const ProductArguments& mine = *static_cast<ProductArguments*>(arguments[lane]);
    (tf32 ? gather_tf32 : gather_pairs)(mine, lane / 4, lane % 4, all);
    for (int i = 0; i < 4; ++i) {
      accumulator(lane, i, &row, &column);
      d[row][column] = mine.d[i];
    }
  }
  const int depth = tf32 ? 8 : 16;
  double packed[kM * 16];
  for (int m = 0; m < kM; ++m) std::copy_n(all.a[m], depth, packed + m * depth);
  multiply(&d[0][0], packed, &all.b[0][0], kM, kN, depth, depth / 2);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      accumulator(lane, i, &row, &column);
      static_cast<ProductArguments*>(arguments[lane])->d[i] = static_cast<float>(d[row][column]);
    }
  }
}

}  // namespace

void ldmatrix(uint32_t* r, int matrices, bool transpose, uint32_t row, Where at) {
  check_row(row, matrices, false, at);
  MatrixArguments mine = {r, row, matrices, transpose};
  meet_warp(WarpOperation::kLoadMatrix, kAllLanes, &mine, load_all, at);
}

void stmatrix(uint32_t row, const uint32_t* r, int matrices, bool transpose, Where at) {
  check_row(row, matrices, true, at);
  MatrixArguments mine = {const_cast<uint32_t*>(r), row, matrices, transpose};
  meet_warp(WarpOperation::kStoreMatrix, kAllLanes, &mine, store_all, at);
}

void mma(float* d, const uint32_t* a, const uint32_t* b, Operand operand, Where at) {
  ProductArguments mine = {d, a, b, operand};
  meet_warp(WarpOperation::kProduct, kAllLanes, &mine, multiply_all, at);
}

}  // namespace ik::host_cuda
