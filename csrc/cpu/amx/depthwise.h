// The depthwise convolution in front of the AMX product. 32 channels are loaded at once and split into the even and the
// odd ones (a shift, a mask); they are packed in that order, 16 even then 16 odd, and the pointwise weights to match.
#pragma once
#include "cpu/amx/producers.h"

namespace ik::cpu::amx {

struct ChannelPair {
  VecF even, odd;
};
// The channel that stands at position i of a block.
inline int64_t channel_at(int64_t i) { return i < 16 ? 2 * i : 2 * i - 31; }

template <bool kClamp>
struct InputLoad {
  Activation activation;
  VecF floor;
  __mmask32 mask;

  InputLoad(Activation which, __mmask32 lanes)
      : activation(which), floor(broadcast(which == Activation::kRelu ? 0.0f : -HUGE_VALF)), mask(lanes) {}
  ChannelPair operator()(const Bf16* from) const {
    const __m512i bits = load_bits(from, mask);
    const VecF even{_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))};
    const VecF odd{_mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
    if constexpr (kClamp) return {vmax(floor, even), vmax(floor, odd)};
    return {activate(activation, even), activate(activation, odd)};
  }
};

inline void add_tap(ChannelPair* sum, ChannelPair x, const float* tap) {
  sum->even = fmadd(x.even, load(tap), sum->even);
  sum->odd = fmadd(x.odd, load(tap + 16), sum->odd);
}
inline void store_pair(char* to, Activation activation, ChannelPair x) {
  if (activation != Activation::kNone) x = {activate(activation, x.even), activate(activation, x.odd)};
  const __m512bh packed = _mm512_cvtne2ps_pbh(x.odd.v, x.even.v);
  _mm512_storeu_si512(to, reinterpret_cast<const __m512i&>(packed));
}

// One block of 32 channels from channel c, any window.
template <typename Load>
inline void depthwise_any(const SeparableTask& t, Load input, const float* weight, ChannelPair bias, int64_t c,
                          int64_t row_begin, int64_t row_end, char* a) {
  const Geometry& g = t.geometry;
  const int64_t panel_bytes = ceil_div(g.C, kDepth) * kBlockBytes;
  a += c / kDepth * kBlockBytes;
  PixelCursor cursor(g, row_begin);
  for (int64_t i = 0; i < row_end - row_begin; i++, cursor.advance()) {
    const auto [n, p, q] = cursor.pixel();
    ChannelPair sum = bias;
    for (int64_t r = 0; r < g.R; r++) {
      const int64_t h = p * g.stride_h - g.pad_h + r * g.dilation_h;
      if (h < 0 || h >= g.H) continue;
      const Bf16* line = static_cast<const Bf16*>(t.x.data) + n * t.x.stride_n + h * t.x.stride_h + c;
      for (int64_t s = 0; s < g.S; s++) {
        const int64_t w = q * g.stride_w - g.pad_w + s * g.dilation_w;
        if (w >= 0 && w < g.W) add_tap(&sum, input(line + w * t.x.stride_w), weight + (r * g.S + s) * kDepth);
      }
    }
    store_pair(a + i / kRows * panel_bytes + i % kRows * kDepth * 2, t.mid_activation, sum);
  }
}

// The same for 3 x 3 with stride 1: walks along an image row and adds each loaded column of three pixels to the three
// outputs that it touches.
template <typename Load>
inline void depthwise_3x3(const SeparableTask& t, Load input, const float* weight, ChannelPair bias, int64_t c,
                          int64_t row_begin, int64_t row_end, char* a) {
  alignas(64) static constexpr Bf16 kZeros[kDepth] = {};
  constexpr int64_t kAhead = 16;
  const Geometry& g = t.geometry;
  const int64_t panel_bytes = ceil_div(g.C, kDepth) * kBlockBytes;
  char* out = a + c / kDepth * kBlockBytes;
  int64_t within = 0;
  VecF tap[18];
  for (int i = 0; i < 18; i++) tap[i] = load(weight + i * 16);
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t n = row / (g.P * g.Q), p = row / g.Q % g.P, q = row % g.Q;
    const int64_t count = smaller(g.Q - q, row_end - row), left = q - g.pad_w;
    const Bf16* line[3];
    int64_t step[3];
    for (int r = 0; r < 3; r++) {
      const int64_t h = p - g.pad_h + r;
      const bool inside = h >= 0 && h < g.H;
      line[r] = inside ? static_cast<const Bf16*>(t.x.data) + n * t.x.stride_n + h * t.x.stride_h + c : kZeros;
      step[r] = inside ? t.x.stride_w : 0;
    }
    ChannelPair first = bias, second = bias, third = bias;
    for (int64_t w = left; w < left + count + 2; w++) {
      if (w >= 0 && w < g.W) {
        // Only the lowest of the three lines is new, and its pixels lie too far apart for the hardware to follow.
        _mm_prefetch(reinterpret_cast<const char*>(line[2] + (w + kAhead) * step[2]), _MM_HINT_T0);
#pragma GCC unroll 3
        for (int r = 0; r < 3; r++) {
          const ChannelPair x = input(line[r] + w * step[r]);
          first.even = fmadd(x.even, tap[6 * r + 4], first.even);
          first.odd = fmadd(x.odd, tap[6 * r + 5], first.odd);
          second.even = fmadd(x.even, tap[6 * r + 2], second.even);
          second.odd = fmadd(x.odd, tap[6 * r + 3], second.odd);
          third.even = fmadd(x.even, tap[6 * r], third.even);
          third.odd = fmadd(x.odd, tap[6 * r + 1], third.odd);
        }
      }
      if (w >= left + 2) {
        store_pair(out + within * kDepth * 2, t.mid_activation, first);
        if (++within == kRows) {
          within = 0;
          out += panel_bytes;
        }
      }
      first = second;
      second = third;
      third = bias;
    }
    row += count;
  }
}

template <bool kClamp>
void depthwise_blocks(const SeparableTask& t, int64_t row_begin, int64_t row_end, char* a) {
  const Geometry& g = t.geometry;
  const bool sliding =
      g.R == 3 && g.S == 3 && g.stride_h == 1 && g.stride_w == 1 && g.dilation_h == 1 && g.dilation_w == 1;
  for (int64_t c = 0; c < g.C; c += kDepth) {
    const InputLoad<kClamp> input(t.input_activation, mask32(g.C - c));
    const float* weight = static_cast<const float*>(t.depthwise) + c * g.R * g.S;
    alignas(64) float bias[kDepth] = {};
    if (t.depthwise_bias)
      for (int64_t i = 0; i < kDepth; i++)
        if (c + channel_at(i) < g.C) bias[i] = static_cast<const float*>(t.depthwise_bias)[c + channel_at(i)];
    const ChannelPair start{load(bias), load(bias + 16)};
    if (sliding)
      depthwise_3x3(t, input, weight, start, c, row_begin, row_end, a);
    else
      depthwise_any(t, input, weight, start, c, row_begin, row_end, a);
  }
}

// Packed panels of the depthwise results of output pixels [row_begin, row_end). Channels beyond C have zero weight on
// both sides, and their depthwise result is finite: act(0).
inline void depthwise(const SeparableTask& t, int64_t row_begin, int64_t row_end, char* a) {
  if (t.input_activation == Activation::kNone || t.input_activation == Activation::kRelu)
    depthwise_blocks<true>(t, row_begin, row_end, a);
  else
    depthwise_blocks<false>(t, row_begin, row_end, a);
}

}  // namespace ik::cpu::amx
