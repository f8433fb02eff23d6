// B of gemm.h from a weight: one panel of columns, out[(r, s, c)][kNR], zero beyond the last column.
#pragma once
#include "cpu/gemm.h"

namespace ik::cpu::IK_ISA {

template <typename T>
inline T read_weight(const WeightView& w, int64_t k, int64_t c, int64_t r, int64_t s) {
  return static_cast<const T*>(w.data)[k * w.stride_k + c * w.stride_c + r * w.stride_r + s * w.stride_s];
}

// kLanes rows become columns, by log2(kLanes) rounds of interleaving the first half with the second.
template <typename A>
inline void transpose(Vec<A> (&rows)[Vec<A>::kLanes]) {
  constexpr int kLanes = Vec<A>::kLanes;
  Vec<A> other[kLanes];
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; i++) interleave(rows[i], rows[i + kLanes / 2], &other[2 * i], &other[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) rows[i] = other[i];
  }
}

// Columns that lie next to each other in the weight.
template <typename T>
inline void pack_adjacent_columns(const Geometry& g, const WeightView& w, int64_t column, int64_t columns,
                                  Accum<T>* out) {
  using A = Accum<T>;
  constexpr int64_t kLanes = Vec<A>::kLanes, kNR = Gemm<A>::kNR;
  for (int64_t r = 0; r < g.R; r++)
    for (int64_t s = 0; s < g.S; s++)
      for (int64_t c = 0; c < g.C; c++, out += kNR) {
        const T* from = static_cast<const T*>(w.data) + column + c * w.stride_c + r * w.stride_r + s * w.stride_s;
        for (int64_t j = 0; j < kNR; j += kLanes)
          store(out + j, columns - j >= kLanes ? load(from + j)
                         : columns > j         ? load(from + j, static_cast<int>(columns - j))
                                               : broadcast(A(0)));
      }
}

// `count` consecutive elements of each of kLanes columns, `pitch` elements apart; element i of all goes to row(i).
template <typename T, typename Row>
inline void pack_transposed(const T* from, int64_t pitch, int64_t columns, int64_t count, const Row& row) {
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
    for (int j = 0; j < n; j++) store(row(i + j), block[j]);
  }
}

template <typename T>
inline void pack_columns(const Geometry& g, const WeightView& w, int64_t column, Accum<T>* out) {
  using A = Accum<T>;
  constexpr int64_t kLanes = Vec<A>::kLanes, kNR = Gemm<A>::kNR;
  const int64_t columns = smaller(kNR, g.K - column), taps = g.R * g.S;
  const T* data = static_cast<const T*>(w.data) + column * w.stride_k;
  if (w.stride_k == 1) return pack_adjacent_columns<T>(g, w, column, columns, out);
  // A column's elements in one piece: [r][s][c] or, contiguous, [c][r][s].
  const bool contiguous = w.stride_s == 1 && w.stride_r == g.S && w.stride_c == taps;
  if (w.stride_c == 1 || contiguous) {
    for (int64_t j = 0; j < kNR; j += kLanes) {
      const T* from = data + j * w.stride_k;
      if (contiguous) {
        pack_transposed(from, w.stride_k, columns - j, taps * g.C,
                        [&](int64_t i) { return out + (i % taps * g.C + i / taps) * kNR + j; });
        continue;
      }
      for (int64_t t = 0; t < taps; t++)
        pack_transposed(from + t / g.S * w.stride_r + t % g.S * w.stride_s, w.stride_k, columns - j, g.C,
                        [&](int64_t i) { return out + (t * g.C + i) * kNR + j; });
    }
    return;
  }
  // Element by element; the window, which lies together, innermost but for the columns.
  for (int64_t c = 0; c < g.C; c++)
    for (int64_t t = 0; t < taps; t++) {
      A* to = out + (t * g.C + c) * kNR;
      for (int64_t j = 0; j < columns; j++) to[j] = to_accum(read_weight<T>(w, column + j, c, t / g.S, t % g.S));
      for (int64_t j = columns; j < kNR; j++) to[j] = A(0);
    }
}

}  // namespace ik::cpu::IK_ISA
