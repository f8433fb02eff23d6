// B of gemm.h from a weight: one panel of columns, out[(r, s, c)][kNR], zero beyond the last column.
#pragma once
#include "cpu/gemm.h"

namespace ik::cpu::IK_ISA {

// The product after a depthwise window.
inline Geometry pointwise(const Geometry& g) {
  Geometry point = g;
  point.R = point.S = 1;
  return point;
}

template <typename T>
inline T read_weight(const WeightView& w, int64_t k, int64_t c, int64_t r, int64_t s) {
  return static_cast<const T*>(w.data)[k * w.stride_k + c * w.stride_c + r * w.stride_r + s * w.stride_s];
}

// kLanes rows become columns, by log2(kLanes) rounds of interleaving the first half with the second.
template <typename O>
inline void transpose(Vec<O> (&rows)[Vec<O>::kLanes]) {
  constexpr int kLanes = Vec<O>::kLanes;
  Vec<O> other[kLanes];
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; i++) interleave(rows[i], rows[i + kLanes / 2], &other[2 * i], &other[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) rows[i] = other[i];
  }
}

// Weights that change in every step come from memory, a line here and a line there: too few in flight without these.
constexpr int64_t kAheadBytes = 256, kAheadRows = 16;

// The panel's operands of one tap, and a channel of all columns into them. A pair's first channel is written before its
// second.
template <typename T>
inline void store_channel(Operand<T>* tap, int64_t c, Vec<Accum<T>> columns) {
  Operand<T>* const to = tap + c / kDepth<T> * Gemm<Operand<T>>::kNR;
  if constexpr (kDepth<T> == 1)
    store(to, columns);
  else
    store(to, c % 2 == 0 ? join(columns, broadcast(0.0f)) : add_second(load(to), columns));
}

template <typename T>
inline Vec<Accum<T>> load_channel(const Operand<T>* tap, int64_t c) {
  const auto operands = load(tap + c / kDepth<T> * Gemm<Operand<T>>::kNR);
  if constexpr (kDepth<T> == 1)
    return operands;
  else
    return c % 2 == 0 ? first_of(operands) : second_of(operands);
}

// Columns that lie next to each other in the weight.
template <typename T>
inline void pack_adjacent_columns(const Geometry& g, const WeightView& w, int64_t column, int64_t columns,
                                  Operand<T>* out) {
  using A = Accum<T>;
  constexpr int64_t kLanes = Vec<A>::kLanes, kNR = Gemm<Operand<T>>::kNR;
  const auto load_columns = [&](const T* from, int64_t j) {
    return columns - j >= kLanes ? load(from + j)
           : columns > j         ? load(from + j, static_cast<int>(columns - j))
                                 : broadcast(A(0));
  };
  for (int64_t r = 0; r < g.R; r++)
    for (int64_t s = 0; s < g.S; s++)
      for (int64_t c = 0; c < g.C; c += kDepth<T>, out += kNR) {
        const T* from = static_cast<const T*>(w.data) + column + c * w.stride_c + r * w.stride_r + s * w.stride_s;
        for (int64_t j = 0; j < kNR; j += kLanes) {
          __builtin_prefetch(from + kAheadRows * w.stride_c + j, 0, 2);
          if constexpr (kDepth<T> == 1)
            store(out + j, load_columns(from, j));
          else
            store(out + j,
                  join(load_columns(from, j), c + 1 < g.C ? load_columns(from + w.stride_c, j) : broadcast(0.0f)));
        }
      }
}

// `count` consecutive elements of each of kLanes columns, `pitch` elements apart; element i of all goes to put(i).
template <typename T, typename Put>
inline void pack_transposed(const T* from, int64_t pitch, int64_t columns, int64_t count, const Put& put) {
  using A = Accum<T>;
  constexpr int kLanes = Vec<A>::kLanes;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = static_cast<int>(smaller(kLanes, count - i));
    Vec<A> block[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; j++)
      block[j] = j >= columns  ? broadcast(A(0))
                 : n == kLanes ? load(from + j * pitch + i)
                               : load(from + j * pitch + i, n);
    transpose<A>(block);
    for (int j = 0; j < n; j++) put(i + j, block[j]);
  }
}

// `count` consecutive channels of each of kLanes columns, `pitch` elements apart, as operands.
template <typename T>
inline void pack_channels(const T* from, int64_t pitch, int64_t columns, int64_t count, Operand<T>* out) {
  using O = Operand<T>;
  constexpr int kLanes = Vec<O>::kLanes, kCount = kLanes * kDepth<T>;
  for (int64_t c = 0; c < count; c += kCount) {
    const int n = static_cast<int>(smaller(kCount, count - c));
    Vec<O> block[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; j++)
      __builtin_prefetch(reinterpret_cast<const char*>(from + j * pitch + c) + kAheadBytes, 0, 2);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; j++) block[j] = j >= columns ? broadcast(O{}) : load_operands(from + j * pitch + c, n);
    transpose<O>(block);
    for (int j = 0; j < operands<T>(n); j++, out += Gemm<O>::kNR) store(out, block[j]);
  }
}

template <typename T>
inline void pack_columns(const Geometry& g, const WeightView& w, int64_t column, Operand<T>* out) {
  using A = Accum<T>;
  constexpr int64_t kLanes = Vec<A>::kLanes, kNR = Gemm<Operand<T>>::kNR;
  const int64_t columns = smaller(kNR, g.K - column), taps = g.R * g.S, tap_operands = operands<T>(g.C) * kNR;
  const T* data = static_cast<const T*>(w.data) + column * w.stride_k;
  if (w.stride_k == 1) return pack_adjacent_columns<T>(g, w, column, columns, out);
  // A column's elements in one piece: [r][s][c] or, contiguous, [c][r][s].
  const bool contiguous = w.stride_s == 1 && w.stride_r == g.S && w.stride_c == taps;
  for (int64_t j = 0; j < kNR; j += kLanes) {
    const T* from = data + j * w.stride_k;
    const int64_t left = columns - j;
    if (w.stride_c == 1) {
      for (int64_t t = 0; t < taps; t++)
        pack_channels<T>(from + t / g.S * w.stride_r + t % g.S * w.stride_s, w.stride_k, left, g.C,
                         out + t * tap_operands + j);
    } else if (contiguous) {
      pack_transposed(from, w.stride_k, left, taps * g.C, [&](int64_t i, Vec<A> columns) {
        store_channel<T>(out + i % taps * tap_operands + j, i / taps, columns);
      });
    } else {
      // Element by element; the window, which lies together, innermost but for the columns.
      for (int64_t c = 0; c < g.C; c++)
        for (int64_t t = 0; t < taps; t++) {
          alignas(64) A values[kLanes] = {};
          for (int64_t i = 0; i < smaller(kLanes, left); i++)
            values[i] = to_accum(read_weight<T>(w, column + j + i, c, t / g.S, t % g.S));
          store_channel<T>(out + t * tap_operands + j, c, load(values));
        }
    }
  }
}

}  // namespace ik::cpu::IK_ISA
