// The register-blocked product that every operator is built on, its operand formats and its epilogue.
//   A: [panel of kMR rows][block of 16 k][kMR][16]     written by a producer, stays in cache
//   B: [panel of kNR columns][k][kNR]                  packed once
//   C: [kMR][kNR]                                      on the stack, finished by the epilogue
// The order of summation of an element of C depends on k alone: its bits do not depend on the tile it is in.
//
#pragma once
#include <utility>

#include "cpu/activation.h"
#include "cpu/kernel_table.h"

namespace ik::cpu::IK_ISA {

constexpr int64_t kBlock = 16;
// Sums are chained over so many k and then added up: a single chain over thousands would lose digits.
constexpr int64_t kChain = 256;

// Registers decide the block: kMR x kNV accumulators, kNV columns of B and one broadcast of A.
template <typename A>
struct Gemm {
  static constexpr int kBytes = Vec<A>::kLanes * static_cast<int>(sizeof(A));
  static constexpr int kMR = kBytes == 64 ? 14 : kBytes == 32 ? 6 : 4;
  static constexpr int kNV = 2;
  static constexpr int kNR = kNV * Vec<A>::kLanes;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <typename A>
inline int64_t panel_elements(int64_t k) {
  return round_up(k, kBlock) * Gemm<A>::kMR;
}
// Where element k of row `row` lies, counted from its panel.
template <typename A>
inline int64_t panel_offset(int64_t row, int64_t k) {
  return (k / kBlock * Gemm<A>::kMR + row) * kBlock + k % kBlock;
}

template <typename A, int MR, int NV>
void micro_kernel(const A* a, const A* b, int64_t k, bool add, A* c) {
  constexpr int kLanes = Vec<A>::kLanes, kNR = Gemm<A>::kNR, kMR = Gemm<A>::kMR;
  Vec<A> sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < NV; j++) sum[i][j] = broadcast(A(0));
  }
  while (k > 0) {
    const int64_t steps = smaller(k, kBlock);
#pragma GCC unroll 1
    for (int64_t s = 0; s < steps; s++) {
      Vec<A> column[NV];
#pragma GCC unroll 2
      for (int j = 0; j < NV; j++) column[j] = load(b + j * kLanes);
      // B lies in L2 or beyond, A in L2: fetch B 16 steps ahead and the next block of A, one row a step.
#pragma GCC unroll 2
      for (int j = 0; j < NV; j++) __builtin_prefetch(b + kBlock * kNR + j * kLanes);
      __builtin_prefetch(a + (kMR + s) * kBlock);
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) {
        const Vec<A> row = broadcast(a[i * kBlock + s]);
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) sum[i][j] = fmadd(row, column[j], sum[i][j]);
      }
      b += kNR;
    }
    a += kMR * kBlock;
    k -= steps;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < NV; j++) {
      A* to = c + i * kNR + j * kLanes;
      store(to, add ? load(to) + sum[i][j] : sum[i][j]);
    }
  }
}

template <typename A>
using MicroKernel = void (*)(const A*, const A*, int64_t, bool, A*);

template <typename A, int NV, int... kRows>
inline MicroKernel<A> pick_micro_kernel(int64_t rows, std::integer_sequence<int, kRows...>) {
  static constexpr MicroKernel<A> kTable[] = {micro_kernel<A, kRows + 1, NV>...};
  return kTable[rows - 1];
}

// c[rows][kNR] = a * b; columns beyond `columns` may be left unwritten.
template <typename A>
inline void multiply_panels(const A* a, const A* b, int64_t k, int64_t rows, int64_t columns, A* c) {
  constexpr std::make_integer_sequence<int, Gemm<A>::kMR> kAllRows{};
  const MicroKernel<A> kernel =
      columns > Vec<A>::kLanes ? pick_micro_kernel<A, 2>(rows, kAllRows) : pick_micro_kernel<A, 1>(rows, kAllRows);
  for (int64_t begin = 0; begin < k; begin += kChain)
    kernel(a + begin * Gemm<A>::kMR, b + begin * Gemm<A>::kNR, smaller(kChain, k - begin), begin > 0, c);
}

template <typename T, Activation kActivation>
inline void finish_rows(const Epilogue& epilogue, const Accum<T>* c, const int64_t* y_offset, const int64_t* r_offset,
                        int64_t rows, int64_t column, int64_t columns) {
  using A = Accum<T>;
  constexpr int kLanes = Vec<A>::kLanes;
  const bool affine = epilogue.scale || epilogue.shift;
  for (int64_t j = 0; j < columns; j += kLanes) {
    const int n = static_cast<int>(smaller(kLanes, columns - j));
    Vec<A> scale = broadcast(A(1)), shift = broadcast(A(0));
    if (epilogue.scale) scale = load(static_cast<const A*>(epilogue.scale) + column + j, n);
    if (epilogue.shift) shift = load(static_cast<const A*>(epilogue.shift) + column + j, n);
    for (int64_t i = 0; i < rows; i++) {
      Vec<A> value = load(c + i * Gemm<A>::kNR + j);
      if (affine) value = fmadd(value, scale, shift);
      if (r_offset) {
        const T* residual = static_cast<const T*>(epilogue.residual.data) + r_offset[i] + column + j;
        value = value + (n == kLanes ? load(residual) : load(residual, n));
      }
      value = activate<kActivation>(value);
      T* y = static_cast<T*>(epilogue.y.data) + y_offset[i] + column + j;
      if (n == kLanes)
        store(y, value);
      else
        store(y, value, n);
    }
  }
}
template <typename T>
inline void finish(const Epilogue& epilogue, const Accum<T>* c, const int64_t* y_offset, const int64_t* r_offset,
                   int64_t rows, int64_t column, int64_t columns) {
  switch (epilogue.activation) {
    case Activation::kNone:
      return finish_rows<T, Activation::kNone>(epilogue, c, y_offset, r_offset, rows, column, columns);
    case Activation::kRelu:
      return finish_rows<T, Activation::kRelu>(epilogue, c, y_offset, r_offset, rows, column, columns);
    case Activation::kRelu6:
      return finish_rows<T, Activation::kRelu6>(epilogue, c, y_offset, r_offset, rows, column, columns);
    case Activation::kElu:
      return finish_rows<T, Activation::kElu>(epilogue, c, y_offset, r_offset, rows, column, columns);
    case Activation::kSilu:
      return finish_rows<T, Activation::kSilu>(epilogue, c, y_offset, r_offset, rows, column, columns);
  }
}

// The columns [panel_begin, panel_end) of a tile of `rows` rows in A. Panels outer, rows inner: a panel of B is read
// once from memory, A stays in L2.
template <typename T>
void multiply_tile(const Accum<T>* a, const void* packed_b, int64_t k, int64_t rows, const Epilogue& epilogue,
                   const int64_t* y_offset, const int64_t* r_offset, int64_t K, const Tile& tile) {
  using A = Accum<T>;
  constexpr int64_t kMR = Gemm<A>::kMR, kNR = Gemm<A>::kNR;
  alignas(64) A c[kMR * kNR];
  const int64_t panel = panel_elements<A>(k);
  for (int64_t q = tile.panel_begin; q < tile.panel_end; q++) {
    const A* b = static_cast<const A*>(packed_b) + q * k * kNR;
    const int64_t columns = smaller(kNR, K - q * kNR);
    for (int64_t i = 0; i < rows; i += kMR) {
      const int64_t n = smaller(kMR, rows - i);
      multiply_panels(a + i / kMR * panel, b, k, n, columns, c);
      finish<T>(epilogue, c, y_offset + i, r_offset ? r_offset + i : nullptr, n, q * kNR, columns);
    }
  }
}

}  // namespace ik::cpu::IK_ISA
