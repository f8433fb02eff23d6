// The rows of A (gemm.h) of a separable convolution: a tile of depthwise results.
//
#pragma once
#include "cpu/gemm.h"
#include "cpu/scratch.h"

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

// `channels` channels from channel c on.
template <typename T>
inline Channels<T> depthwise_bias(const SeparableTask& t, int64_t c, int channels) {
  using A = Accum<T>;
  Channels<T> bias;
  alignas(64) A values[kDepth<T>][Vec<A>::kLanes] = {};
  if (t.depthwise_bias)
    for (int i = 0; i < channels; i++) values[i % kDepth<T>][i / kDepth<T>] = static_cast<const A*>(t.depthwise_bias)[c + i];
#pragma GCC unroll 2
  for (int v = 0; v < kDepth<T>; v++) bias.v[v] = load(values[v]);
  return bias;
}

template <typename T, typename Input>
inline Channels<T> load_input(Input input, const T* from, int channels) {
  Channels<T> x = load_channels(from, channels);
#pragma GCC unroll 2
  for (int v = 0; v < kDepth<T>; v++) x.v[v] = input(x.v[v]);
  return x;
}

template <typename T>
inline void store_output(Operand<T>* to, Activation activation, Channels<T> sum) {
#pragma GCC unroll 2
  for (int v = 0; v < kDepth<T>; v++) sum.v[v] = activate(activation, sum.v[v]);
  store_operands<T>(to, sum);
}

// Where channel c of the tile's first row lies.
template <typename T>
inline Operand<T>* depthwise_column(Operand<T>* a, int64_t channels, int64_t c) {
  const int64_t k = c / kDepth<T>, pitch = tile_pitch<Operand<T>>(operands<T>(channels));
  return a + k / kChain * Gemm<Operand<T>>::kMR * pitch + k % kChain;
}

// One vector of operands, any window.
template <typename T, typename Input>
inline void depthwise_any(const SeparableTask& t, Input input, const Accum<T>* weight, int64_t c, int channels,
                          int64_t row_begin, int64_t row_end, Operand<T>* a) {
  using O = Operand<T>;
  constexpr int64_t kMR = Gemm<O>::kMR, kLanes = Vec<O>::kLanes;
  const Geometry& g = t.geometry;
  const int64_t panel = panel_operands<O>(operands<T>(g.C)), pitch = tile_pitch<O>(operands<T>(g.C));
  const Channels<T> bias = depthwise_bias<T>(t, c, channels);
  O* const out = depthwise_column<T>(a, g.C, c);
  Pixel at = pixel_of(g, row_begin);
  for (int64_t row = row_begin, i = 0; row < row_end; row++, i++, advance(g, &at)) {
    Channels<T> sum = bias;
    for (int64_t r = 0; r < g.R; r++) {
      const int64_t h = at.p * g.stride_h - g.pad_h + r * g.dilation_h;
      if (h < 0 || h >= g.H) continue;
      const T* line = static_cast<const T*>(t.x.data) + at.n * t.x.stride_n + h * t.x.stride_h + c;
      for (int64_t s = 0; s < g.S; s++) {
        const int64_t w = at.q * g.stride_w - g.pad_w + s * g.dilation_w;
        if (w < 0 || w >= g.W) continue;
        const Channels<T> x = load_input(input, line + w * t.x.stride_w, channels);
#pragma GCC unroll 2
        for (int v = 0; v < kDepth<T>; v++)
          sum.v[v] = fmadd(x.v[v], load(weight + ((r * g.S + s) * kDepth<T> + v) * kLanes), sum.v[v]);
      }
    }
    store_output<T>(out + i / kMR * panel + i % kMR * pitch, t.mid_activation, sum);
  }
}

// kCount vectors of operands, 3 x 3, stride 1, dilation 1: walks along an image row and adds each loaded column of
// three pixels to the three outputs that it touches. Taps outside the image are left out, so every output has one
// order.
template <int kCount, typename T, typename Input>
inline void depthwise_3x3(const SeparableTask& t, Input input, const Accum<T>* weight, int64_t c, int channels,
                          int64_t row_begin, int64_t row_end, Operand<T>* a) {
  using O = Operand<T>;
  constexpr int64_t kMR = Gemm<O>::kMR, kLanes = Vec<O>::kLanes, kChannels = Channels<T>::kCount;
  constexpr int kVectors = kDepth<T>;
  alignas(64) static constexpr T kZeros[kCount * kChannels] = {};
  constexpr int64_t kAhead = 16;
  const Geometry& g = t.geometry;
  const int64_t panel = panel_operands<O>(operands<T>(g.C)), pitch = tile_pitch<O>(operands<T>(g.C));
  Vec<Accum<T>> tap[9][kCount][kVectors];
  Channels<T> bias[kCount];
#pragma GCC unroll 2
  for (int i = 0; i < kCount; i++) {
#pragma GCC unroll 9
    for (int j = 0; j < 9; j++) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) tap[j][i][v] = load(weight + ((i * 9 + j) * kVectors + v) * kLanes);
    }
    bias[i] = depthwise_bias<T>(t, c + i * kChannels, channels);
  }
  O* out = depthwise_column<T>(a, g.C, c);
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
    Channels<T> first[kCount], second[kCount], third[kCount];
#pragma GCC unroll 2
    for (int i = 0; i < kCount; i++) first[i] = second[i] = third[i] = bias[i];
    const int64_t left = at.q - g.pad_w;
    for (int64_t w = left; w < left + count + 2; w++) {
      if (w >= 0 && w < g.W) {
        // Only the lowest of the three lines is new, and its pixels lie too far apart for the hardware to follow.
        const T* const ahead = line[2] + (w + kAhead) * step[2];
#pragma GCC unroll 3
        for (int r = 0; r < 3; r++) {
#pragma GCC unroll 2
          for (int i = 0; i < kCount; i++) {
            if (r == 0) __builtin_prefetch(ahead + i * kChannels);
            const Channels<T> x = load_input(input, line[r] + w * step[r] + i * kChannels, channels);
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; v++) {
              first[i].v[v] = fmadd(x.v[v], tap[3 * r + 2][i][v], first[i].v[v]);
              second[i].v[v] = fmadd(x.v[v], tap[3 * r + 1][i][v], second[i].v[v]);
              third[i].v[v] = fmadd(x.v[v], tap[3 * r][i][v], third[i].v[v]);
            }
          }
        }
      }
      if (w >= left + 2) {
#pragma GCC unroll 2
        for (int i = 0; i < kCount; i++)
          store_output<T>(out + within * pitch + i * kLanes, t.mid_activation, first[i]);
        if (++within == kMR) {
          within = 0;
          out += panel;
        }
      }
#pragma GCC unroll 2
      for (int i = 0; i < kCount; i++) {
        first[i] = second[i];
        second[i] = third[i];
        third[i] = bias[i];
      }
    }
    row += count;
  }
}

template <typename T, bool kClamp>
void depthwise_channels(const SeparableTask& t, int64_t row_begin, int64_t row_end, Operand<T>* a) {
  using A = Accum<T>;
  constexpr int64_t kChannels = Channels<T>::kCount;
  // 18 vectors of taps and 6 of sums fit the 32 registers of AVX-512 only.
  constexpr int kCount = Vec<A>::kLanes * sizeof(A) == 64 ? 2 / kDepth<T> : 1;
  const Geometry& g = t.geometry;
  const InputActivation<kClamp> input{t.input_activation};
  const bool sliding =
      g.R == 3 && g.S == 3 && g.stride_h == 1 && g.stride_w == 1 && g.dilation_h == 1 && g.dilation_w == 1;
  for (int64_t c = 0; c < g.C;) {
    const int channels = static_cast<int>(smaller(kChannels, g.C - c));
    const A* weight = static_cast<const A*>(t.depthwise) + c * g.R * g.S;
    if (sliding && g.C - c >= kCount * kChannels) {
      depthwise_3x3<kCount, T>(t, input, weight, c, kChannels, row_begin, row_end, a);
      c += kCount * kChannels;
      continue;
    }
    if (sliding)
      depthwise_3x3<1, T>(t, input, weight, c, channels, row_begin, row_end, a);
    else
      depthwise_any<T>(t, input, weight, c, channels, row_begin, row_end, a);
    c += kChannels;
  }
}

// Row m of the tile gets the C depthwise results of output pixel row_begin + m.
template <typename T>
void depthwise(const SeparableTask& t, int64_t row_begin, int64_t row_end, Operand<T>* a) {
  if (t.input_activation == Activation::kNone || t.input_activation == Activation::kRelu)
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
