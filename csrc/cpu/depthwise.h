// The rows of A (gemm.h) of a separable convolution: a tile of depthwise results.
//
#pragma once
#include "cpu/depthwise_pairs.h"
#include "cpu/scratch.h"

namespace ik::cpu::IK_ISA {

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

template <typename A>
inline Vec<A> depthwise_bias(const SeparableTask& t, int64_t c, int lanes) {
  return t.depthwise_bias ? load(static_cast<const A*>(t.depthwise_bias) + c, lanes) : broadcast(A(0));
}

// One vector of channels, any window.
template <typename T, typename Input>
inline void depthwise_any(const SeparableTask& t, Input input, const Accum<T>* weight, int64_t c, int lanes,
                          int64_t row_begin, int64_t row_end, Accum<T>* a) {
  using A = Accum<T>;
  constexpr int64_t kMR = Gemm<A>::kMR, kLanes = Vec<A>::kLanes;
  const Geometry& g = t.geometry;
  const int64_t panel = panel_operands<A>(g.C), pitch = tile_pitch<A>(g.C);
  const Vec<A> bias = depthwise_bias<A>(t, c, lanes);
  A* const out = a + c / kChain * kMR * pitch + c % kChain;
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
    store(out + i / kMR * panel + i % kMR * pitch, activate(t.mid_activation, sum));
  }
}

// kCount vectors of channels, 3 x 3, stride 1, dilation 1: walks along an image row and adds each loaded column of
// three pixels to the three outputs that it touches. Taps outside the image are left out, so every output has one
// order.
template <int kCount, typename T, typename Input>
inline void depthwise_3x3(const SeparableTask& t, Input input, const Accum<T>* weight, int64_t c, int lanes,
                          int64_t row_begin, int64_t row_end, Accum<T>* a) {
  using A = Accum<T>;
  constexpr int64_t kMR = Gemm<A>::kMR, kLanes = Vec<A>::kLanes;
  alignas(64) static constexpr T kZeros[kCount * kLanes] = {};
  constexpr int64_t kAhead = 16;
  const Geometry& g = t.geometry;
  const int64_t panel = panel_operands<A>(g.C), pitch = tile_pitch<A>(g.C);
  Vec<A> tap[9][kCount], bias[kCount];
#pragma GCC unroll 2
  for (int v = 0; v < kCount; v++) {
#pragma GCC unroll 9
    for (int i = 0; i < 9; i++) tap[i][v] = load(weight + (v * 9 + i) * kLanes);
    bias[v] = depthwise_bias<A>(t, c + v * kLanes, lanes);
  }
  A* out = a + c / kChain * kMR * pitch + c % kChain;
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
    // Outputs w - 2, w - 1 and w of the column being read.
    Vec<A> first[kCount], second[kCount], third[kCount];
#pragma GCC unroll 2
    for (int v = 0; v < kCount; v++) first[v] = second[v] = third[v] = bias[v];
    const int64_t left = at.q - g.pad_w;
    for (int64_t w = left; w < left + count + 2; w++) {
      if (w >= 0 && w < g.W) {
        // Only the lowest of the three lines is new, and its pixels lie too far apart for the hardware to follow.
        const T* const ahead = line[2] + (w + kAhead) * step[2];
#pragma GCC unroll 3
        for (int r = 0; r < 3; r++) {
#pragma GCC unroll 2
          for (int v = 0; v < kCount; v++) {
            if (r == 0) __builtin_prefetch(ahead + v * kLanes);
            const T* from = line[r] + w * step[r] + v * kLanes;
            const Vec<A> x = input(lanes == kLanes ? load(from) : load(from, lanes));
            first[v] = fmadd(x, tap[3 * r + 2][v], first[v]);
            second[v] = fmadd(x, tap[3 * r + 1][v], second[v]);
            third[v] = fmadd(x, tap[3 * r][v], third[v]);
          }
        }
      }
      if (w >= left + 2) {
#pragma GCC unroll 2
        for (int v = 0; v < kCount; v++) store(out + within * pitch + v * kLanes, activate(t.mid_activation, first[v]));
        if (++within == kMR) {
          within = 0;
          out += panel;
        }
      }
#pragma GCC unroll 2
      for (int v = 0; v < kCount; v++) {
        first[v] = second[v];
        second[v] = third[v];
        third[v] = bias[v];
      }
    }
    row += count;
  }
}

template <typename T, bool kClamp>
void depthwise_channels(const SeparableTask& t, int64_t row_begin, int64_t row_end, Accum<T>* a) {
  using A = Accum<T>;
  constexpr int64_t kLanes = Vec<A>::kLanes;
  // Two vectors of 9 taps and 3 sums each fit the 32 registers of AVX-512 only.
  constexpr int kCount = kLanes * sizeof(A) == 64 ? 2 : 1;
  const Geometry& g = t.geometry;
  const InputActivation<kClamp> input{t.input_activation};
  const bool sliding =
      g.R == 3 && g.S == 3 && g.stride_h == 1 && g.stride_w == 1 && g.dilation_h == 1 && g.dilation_w == 1;
  for (int64_t c = 0; c < g.C;) {
    const int lanes = static_cast<int>(smaller(kLanes, g.C - c));
    const A* weight = static_cast<const A*>(t.depthwise) + c * g.R * g.S;
    if (sliding && g.C - c >= kCount * kLanes) {
      depthwise_3x3<kCount, T>(t, input, weight, c, kLanes, row_begin, row_end, a);
      c += kCount * kLanes;
      continue;
    }
    if (sliding)
      depthwise_3x3<1, T>(t, input, weight, c, lanes, row_begin, row_end, a);
    else
      depthwise_any<T>(t, input, weight, c, lanes, row_begin, row_end, a);
    c += kLanes;
  }
}

// Row m of the tile gets the C depthwise results of output pixel row_begin + m.
template <typename T>
void depthwise(const SeparableTask& t, int64_t row_begin, int64_t row_end, Operand<T>* a) {
  if constexpr (kDepth<T> == 2)
    depthwise_pairs(t, row_begin, row_end, a);
  else if (t.input_activation == Activation::kNone || t.input_activation == Activation::kRelu)
    depthwise_channels<T, true>(t, row_begin, row_end, a);
  else
    depthwise_channels<T, false>(t, row_begin, row_end, a);
}

// The tile as the product reads it.
template <typename T>
Rows<Operand<T>> depthwise_rows(const SeparableTask& t, int64_t row_begin, int64_t row_end, const Operand<T>* a) {
  using O = Operand<T>;
  const Geometry& g = t.geometry;
  const NhwcOutput& y = t.epilogue.y;
  const NhwcInput& residual = t.epilogue.residual;
  const int64_t k = operands<T>(g.C), rows = row_end - row_begin, count = ceil_div(rows, Gemm<O>::kMR);
  RowPanel<O>* const panels =
      static_cast<RowPanel<O>*>(scratch(Scratch::kRows, static_cast<size_t>(count) * sizeof(RowPanel<O>)));
  Pixel at = pixel_of(g, row_begin);
  for (int64_t i = 0; i < count; i++) {
    const int64_t begin = i * Gemm<O>::kMR, end = smaller(rows, begin + Gemm<O>::kMR);
    panels[i].a = a + i * panel_operands<O>(k);
    panels[i].rows = static_cast<int>(end - begin);
    panels[i].segment_begin = 0;
    panels[i].segment_end = static_cast<int>(ceil_div(k, kChain));
    for (int64_t j = 0; j < end - begin; j++, advance(g, &at)) {
      panels[i].y[j] = at.n * y.stride_n + at.p * y.stride_h + at.q * y.stride_w;
      panels[i].residual[j] = at.n * residual.stride_n + at.p * residual.stride_h + at.q * residual.stride_w;
    }
  }
  const int64_t pitch = tile_pitch<O>(k), chains = ceil_div(k, kChain);
  Segment* const segments =
      static_cast<Segment*>(scratch(Scratch::kSegments, static_cast<size_t>(chains) * sizeof(Segment)));
  for (int64_t i = 0; i < chains; i++)
    segments[i] = {i * kChain, i * Gemm<O>::kMR * pitch, smaller(kChain, k - i * kChain), true};
  const Pixel first = pixel_of(g, row_begin), last = pixel_of(g, row_end - 1);
  return {panels, count, pitch, segments, Upcoming::after<T>(g, t.x, first.n, first.p, last.n, last.p)};
}

}  // namespace ik::cpu::IK_ISA
