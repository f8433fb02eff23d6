// Producers write a tile of A (gemm.h) from x: im2col for dense windows, the depthwise convolution for separable ones.
//
#pragma once
#include "cpu/gemm.h"

namespace ik::cpu::IK_ISA {

struct Pixel {
  int64_t n, p, q;
};
inline Pixel pixel_of(const Geometry& g, int64_t row) { return {row / (g.P * g.Q), row / g.Q % g.P, row % g.Q}; }
inline void advance(const Geometry& g, Pixel* at) {
  if (++at->q < g.Q) return;
  at->q = 0;
  if (++at->p < g.P) return;
  at->p = 0;
  at->n++;
}

// Element offsets of output pixels [row_begin, row_end) in a view [N, P, Q, K].
template <typename View>
inline void pixel_offsets(const Geometry& g, const View& view, int64_t row_begin, int64_t row_end, int64_t* offset) {
  Pixel at = pixel_of(g, row_begin);
  for (int64_t row = row_begin; row < row_end; row++, advance(g, &at))
    *offset++ = at.n * view.stride_n + at.p * view.stride_h + at.q * view.stride_w;
}

// Less than a block.
template <typename T>
inline void copy_part(const T* from, Accum<T>* to, int64_t n) {
  constexpr int64_t kLanes = Vec<Accum<T>>::kLanes;
  for (; n >= kLanes; n -= kLanes, from += kLanes, to += kLanes) store(to, load(from));
  if (n > 0) store(to, load(from, static_cast<int>(n)), static_cast<int>(n));
}
// Elements [k, k + n) of one row of a panel; `row` points at the row's element 0.
template <typename T>
inline void copy_run(const T* from, Accum<T>* row, int64_t k, int64_t n) {
  constexpr int64_t kLanes = Vec<Accum<T>>::kLanes, kStep = Gemm<Accum<T>>::kMR * kBlock;
  Accum<T>* to = row + (k & ~(kBlock - 1)) * Gemm<Accum<T>>::kMR;
  if (const int64_t within = k & (kBlock - 1)) {
    const int64_t count = smaller(kBlock - within, n);
    copy_part(from, to + within, count);
    from += count;
    n -= count;
    to += kStep;
  }
  for (; n >= kBlock; n -= kBlock, from += kBlock, to += kStep)
    for (int64_t i = 0; i < kBlock; i += kLanes) store(to + i, load(from + i));
  if (n > 0) copy_part(from, to, n);
}
template <typename A>
inline void zero_run(A* row, int64_t k, int64_t n) {
  constexpr int64_t kStep = Gemm<A>::kMR * kBlock;
  for (const int64_t end = k + n; k < end;) {
    A* to = row + (k & ~(kBlock - 1)) / kBlock * kStep + (k & (kBlock - 1));
    const int64_t count = smaller(kBlock - (k & (kBlock - 1)), end - k);
    for (int64_t i = 0; i < count; i++) to[i] = A(0);
    k += count;
  }
}

// Rows [row_begin, row_end) of the matrix whose row m holds, in the order (r, s, c), what output pixel m reads.
template <typename T>
void im2col(const Geometry& g, const NhwcInput& x, int64_t row_begin, int64_t row_end, Accum<T>* a) {
  using A = Accum<T>;
  constexpr int64_t kMR = Gemm<A>::kMR;
  const int64_t panel = panel_elements<A>(g.R * g.S * g.C), run = g.S * g.C;
  const bool contiguous = g.dilation_w == 1 && x.stride_w == g.C;
  Pixel at = pixel_of(g, row_begin);
  for (int64_t row = row_begin, i = 0; row < row_end; row++, i++, advance(g, &at)) {
    A* out = a + i / kMR * panel + i % kMR * kBlock;
    const int64_t left = at.q * g.stride_w - g.pad_w;
    for (int64_t r = 0; r < g.R; r++) {
      const int64_t h = at.p * g.stride_h - g.pad_h + r * g.dilation_h, k = r * run;
      if (h < 0 || h >= g.H) {
        zero_run(out, k, run);
        continue;
      }
      const T* line = static_cast<const T*>(x.data) + at.n * x.stride_n + h * x.stride_h;
      if (contiguous) {
        const int64_t begin = smaller(g.S, larger(0, -left)), end = larger(begin, smaller(g.S, g.W - left));
        zero_run(out, k, begin * g.C);
        if (end > begin) copy_run(line + (left + begin) * g.C, out, k + begin * g.C, (end - begin) * g.C);
        zero_run(out, k + end * g.C, (g.S - end) * g.C);
        continue;
      }
      for (int64_t s = 0; s < g.S; s++) {
        const int64_t w = left + s * g.dilation_w;
        if (w < 0 || w >= g.W)
          zero_run(out, k + s * g.C, g.C);
        else
          copy_run(line + w * x.stride_w, out, k + s * g.C, g.C);
      }
    }
  }
}

// Input activation of the depthwise part: none and ReLU are one maximum, which also keeps NaN.
template <bool kClamp>
struct InputActivation {
  Activation activation;
  template <typename A>
  Vec<A> operator()(Vec<A> x) const {
    if constexpr (!kClamp) return activate(activation, x);
    return vmax(broadcast(activation == Activation::kRelu ? A(0) : -A(HUGE_VAL)), x);
  }
};

// One vector of channels, any window.
template <typename T, typename Input>
inline void depthwise_any(const SeparableTask& t, Input input, const Accum<T>* weight, Vec<Accum<T>> bias, int64_t c,
                          int lanes, int64_t row_begin, int64_t row_end, Accum<T>* a) {
  using A = Accum<T>;
  constexpr int64_t kMR = Gemm<A>::kMR, kLanes = Vec<A>::kLanes;
  const Geometry& g = t.geometry;
  const int64_t panel = panel_elements<A>(g.C);
  Pixel at = pixel_of(g, row_begin);
  for (int64_t row = row_begin, i = 0; row < row_end; row++, i++, advance(g, &at)) {
    Vec<A> sum = bias;
    for (int64_t r = 0; r < g.R; r++) {
      const int64_t h = at.p * g.stride_h - g.pad_h + r * g.dilation_h;
      if (h < 0 || h >= g.H) continue;
      const T* line = static_cast<const T*>(t.x.data) + at.n * t.x.stride_n + h * t.x.stride_h + c;
      for (int64_t s = 0; s < g.S; s++) {
        const int64_t w = at.q * g.stride_w - g.pad_w + s * g.dilation_w;
        if (w < 0 || w >= g.W) continue;
        const T* from = line + w * t.x.stride_w;
        sum =
            fmadd(input(lanes == kLanes ? load(from) : load(from, lanes)), load(weight + (r * g.S + s) * kLanes), sum);
      }
    }
    store(a + i / kMR * panel + panel_offset<A>(i % kMR, c), activate(t.mid_activation, sum));
  }
}

// One vector of channels, 3 x 3, stride 1, dilation 1: walks along an image row and adds each loaded column of three
// pixels to the three outputs that it touches. Taps outside the image are left out, so every output has one order.
template <typename T, typename Input>
inline void depthwise_3x3(const SeparableTask& t, Input input, const Accum<T>* weight, Vec<Accum<T>> bias, int64_t c,
                          int lanes, int64_t row_begin, int64_t row_end, Accum<T>* a) {
  using A = Accum<T>;
  constexpr int64_t kMR = Gemm<A>::kMR, kLanes = Vec<A>::kLanes;
  alignas(64) static constexpr T kZeros[kLanes] = {};
  constexpr int64_t kAhead = 16;
  const Geometry& g = t.geometry;
  const int64_t panel = panel_elements<A>(g.C);
  Vec<A> tap[9];
  for (int i = 0; i < 9; i++) tap[i] = load(weight + i * kLanes);
  A* out = a + panel_offset<A>(0, c);
  int64_t within = 0;
  for (int64_t row = row_begin; row < row_end;) {
    const Pixel at = pixel_of(g, row);
    const int64_t count = smaller(g.Q - at.q, row_end - row);
    const T* line[3];
    int64_t step[3];
    for (int r = 0; r < 3; r++) {
      const int64_t h = at.p - g.pad_h + r;
      const bool inside = h >= 0 && h < g.H;
      line[r] = inside ? static_cast<const T*>(t.x.data) + at.n * t.x.stride_n + h * t.x.stride_h + c : kZeros;
      step[r] = inside ? t.x.stride_w : 0;
    }
    Vec<A> first = bias, second = bias, third = bias;  // outputs w - 2, w - 1 and w of the column being read
    const int64_t left = at.q - g.pad_w;
    for (int64_t w = left; w < left + count + 2; w++) {
      if (w >= 0 && w < g.W) {
        // Only the lowest of the three lines is new, and its pixels lie too far apart for the hardware to follow.
        __builtin_prefetch(line[2] + (w + kAhead) * step[2]);
        Vec<A> column[3];
        for (int r = 0; r < 3; r++) {
          const T* from = line[r] + w * step[r];
          column[r] = input(lanes == kLanes ? load(from) : load(from, lanes));
        }
        for (int r = 0; r < 3; r++) {
          first = fmadd(column[r], tap[3 * r + 2], first);
          second = fmadd(column[r], tap[3 * r + 1], second);
          third = fmadd(column[r], tap[3 * r], third);
        }
      }
      if (w >= left + 2) {
        store(out + within * kBlock, activate(t.mid_activation, first));
        if (++within == kMR) {
          within = 0;
          out += panel;
        }
      }
      first = second;
      second = third;
      third = bias;
    }
    row += count;
  }
}

template <typename T, bool kClamp>
void depthwise_channels(const SeparableTask& t, int64_t row_begin, int64_t row_end, Accum<T>* a) {
  using A = Accum<T>;
  constexpr int64_t kLanes = Vec<A>::kLanes;
  const Geometry& g = t.geometry;
  const InputActivation<kClamp> input{t.input_activation};
  const bool sliding =
      g.R == 3 && g.S == 3 && g.stride_h == 1 && g.stride_w == 1 && g.dilation_h == 1 && g.dilation_w == 1;
  for (int64_t c = 0; c < g.C; c += kLanes) {
    const int lanes = static_cast<int>(smaller(kLanes, g.C - c));
    const A* weight = static_cast<const A*>(t.depthwise) + c * g.R * g.S;
    Vec<A> bias = broadcast(A(0));
    if (t.depthwise_bias) bias = load(static_cast<const A*>(t.depthwise_bias) + c, lanes);
    if (sliding)
      depthwise_3x3<T>(t, input, weight, bias, c, lanes, row_begin, row_end, a);
    else
      depthwise_any<T>(t, input, weight, bias, c, lanes, row_begin, row_end, a);
  }
}

// Rows [row_begin, row_end) of the matrix whose row m holds the C depthwise results of output pixel m.
template <typename T>
void depthwise(const SeparableTask& t, int64_t row_begin, int64_t row_end, Accum<T>* a) {
  if (t.input_activation == Activation::kNone || t.input_activation == Activation::kRelu)
    depthwise_channels<T, true>(t, row_begin, row_end, a);
  else
    depthwise_channels<T, false>(t, row_begin, row_end, a);
}

}  // namespace ik::cpu::IK_ISA
