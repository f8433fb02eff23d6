// The depthwise part of a separable convolution in bf16, for products of pairs: two lines of the window are one
// operand. Inputs and weights are bf16, so that the products are exact, as in float32.
#pragma once
#include "cpu/depthwise_weight.h"
#include "cpu/output_pixels.h"

namespace ik::cpu::IK_ISA {

#if defined(__AVX512BF16__)

// Of 32 channels: pairs of the same channel of two lines. Interleaving works within 128 bits, which decides the order.
struct LinePairs {
  VecPair low, high;
};
struct ChannelSums {
  VecF low, high;
};
constexpr int kPairChannels = 32;
// The channel in lane i of a vector; `high` comes 4 later.
constexpr int channel_of_lane(int i) { return i / 4 * 8 + i % 4; }

inline LinePairs pair_lines(__m512i upper, __m512i lower) {
  return {{_mm512_unpacklo_epi16(upper, lower)}, {_mm512_unpackhi_epi16(upper, lower)}};
}
inline void add_taps(ChannelSums& sums, const LinePairs& x, const VecPair* weight) {
  accumulate(sums.low, x.low, weight[0]);
  accumulate(sums.high, x.high, weight[1]);
}

// Channels of a pixel after the input activation.
template <Activation kActivation>
inline __m512i activate_bf16(Activation activation, __m512i x) {
  if constexpr (kActivation == Activation::kNone) return x;
  if constexpr (kActivation == Activation::kRelu) {
    // As integers, numbers below zero are at most minus infinity, and NaN of either sign lies above it.
    const __mmask32 kept = _mm512_cmpgt_epi16_mask(x, _mm512_set1_epi16(static_cast<int16_t>(0xff80)));
    return _mm512_maskz_mov_epi16(kept, x);
  }
  const VecF first = activate(activation, VecF{_mm512_castsi512_ps(_mm512_slli_epi32(x, 16))});
  const __m512i second_bits = _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  const VecF second = activate(activation, VecF{_mm512_castsi512_ps(second_bits)});
  const __m512i low = _mm512_cvtepu16_epi32(narrow_bf16(first)), high = _mm512_cvtepu16_epi32(narrow_bf16(second));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// Reads the channels [c, c + kPairChannels) that there are.
template <Activation kActivation>
struct PairInput {
  Activation activation;
  __mmask32 channels;
  __m512i operator()(const Bf16* from) const {
    return activate_bf16<kActivation>(activation, _mm512_maskz_loadu_epi16(channels, from));
  }
};

// In the channels' own order.
inline void store_sums(Bf16Pair* to, Activation activation, ChannelSums sums) {
  if (activation != Activation::kNone) sums = {activate(activation, sums.low), activate(activation, sums.high)};
  const __m512bh halves = _mm512_cvtne2ps_pbh(sums.high.v, sums.low.v);
  const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);  // four channels of each in turn
  _mm512_storeu_si512(to, _mm512_permutexvar_epi64(order, reinterpret_cast<const __m512i&>(halves)));
}

// [group of channels][S][pair of lines][low, high]; the last line of an odd window pairs with zero.
template <>
struct DepthwiseWeight<Bf16> {
  static int64_t group_operands(const Geometry& g) { return g.S * ceil_div(g.R, 2) * 2 * VecPair::kLanes; }
  static size_t bytes(const Geometry& g) {
    return static_cast<size_t>(ceil_div(g.C, kPairChannels) * group_operands(g)) * sizeof(Bf16Pair);
  }
  static void pack(const Geometry& g, const WeightView& w, void* packed) {
    Bf16Pair* out = static_cast<Bf16Pair*>(packed);
    const auto bits = [&](int64_t c, int64_t r, int64_t s) -> uint32_t {
      return c < g.C && r < g.R ? read_weight<Bf16>(w, c, 0, r, s).bits : 0;
    };
    for (int64_t first = 0; first < g.C; first += kPairChannels)
      for (int64_t s = 0; s < g.S; s++)
        for (int64_t r = 0; r < g.R; r += 2)
          for (int half = 0; half < 2; half++)
            for (int i = 0; i < VecPair::kLanes; i++) {
              const int64_t c = first + channel_of_lane(i) + 4 * half;
              *out++ = {bits(c, r, s) | bits(c, r + 1, s) << 16};
            }
  }
};

// One group of channels, any window.
template <typename Input>
inline void depthwise_any(const SeparableTask& t, Input input, const Bf16Pair* weight, ChannelSums bias, int64_t c,
                          int64_t row_begin, int64_t row_end, Bf16Pair* out) {
  constexpr int64_t kMR = Gemm<Bf16Pair>::kMR, kLanes = VecPair::kLanes;
  const Geometry& g = t.geometry;
  const int64_t panel = panel_operands<Bf16Pair>(operands<Bf16>(g.C));
  const int64_t pitch = tile_pitch<Bf16Pair>(operands<Bf16>(g.C)), line_pairs = ceil_div(g.R, 2);
  Pixel at = pixel_of(g, row_begin);
  for (int64_t row = row_begin, i = 0; row < row_end; row++, i++, advance(g, &at)) {
    ChannelSums sums = bias;
    const Bf16* const image = static_cast<const Bf16*>(t.x.data) + at.n * t.x.stride_n + c;
    for (int64_t s = 0; s < g.S; s++) {
      const int64_t w = at.q * g.stride_w - g.pad_w + s * g.dilation_w;
      if (w < 0 || w >= g.W) continue;
      const auto line = [&](int64_t r) {
        const int64_t h = at.p * g.stride_h - g.pad_h + r * g.dilation_h;
        return r < g.R && h >= 0 && h < g.H ? input(image + h * t.x.stride_h + w * t.x.stride_w)
                                            : _mm512_setzero_si512();
      };
      for (int64_t j = 0; j < line_pairs; j++) {
        const Bf16Pair* const taps = weight + (s * line_pairs + j) * 2 * kLanes;
        const VecPair pair[2] = {load(taps), load(taps + kLanes)};
        add_taps(sums, pair_lines(line(2 * j), line(2 * j + 1)), pair);
      }
    }
    store_sums(out + i / kMR * panel + i % kMR * pitch, t.mid_activation, sums);
  }
}

// The same for 3 x 3, stride 1, dilation 1: walks along an image row and adds each loaded column of three pixels to the
// three outputs that it touches.
template <typename Input>
inline void depthwise_3x3(const SeparableTask& t, Input input, const Bf16Pair* weight, ChannelSums bias, int64_t c,
                          int64_t row_begin, int64_t row_end, Bf16Pair* out) {
  alignas(64) static constexpr Bf16 kZeros[kPairChannels] = {};
  constexpr int64_t kMR = Gemm<Bf16Pair>::kMR, kAhead = 16;
  const Geometry& g = t.geometry;
  const int64_t panel = panel_operands<Bf16Pair>(operands<Bf16>(g.C));
  const int64_t pitch = tile_pitch<Bf16Pair>(operands<Bf16>(g.C));
  VecPair tap[3][4];  // [column][pair of lines, low and high]
#pragma GCC unroll 12
  for (int i = 0; i < 12; i++) tap[i / 4][i % 4] = load(weight + i * VecPair::kLanes);
  int64_t within = 0;
  for (int64_t row = row_begin; row < row_end;) {
    const Pixel at = pixel_of(g, row);
    const int64_t count = smaller(g.Q - at.q, row_end - row), left = at.q - g.pad_w;
    const Bf16* line[3];
    int64_t step[3];
    for (int r = 0; r < 3; r++) {
      const int64_t h = at.p - g.pad_h + r;
      const bool inside = h >= 0 && h < g.H;
      line[r] = inside ? static_cast<const Bf16*>(t.x.data) + at.n * t.x.stride_n + h * t.x.stride_h + c : kZeros;
      step[r] = inside ? t.x.stride_w : 0;
    }
    // Outputs w - 2, w - 1 and w of the column being read.
    ChannelSums first = bias, second = bias, third = bias;
    for (int64_t w = left; w < left + count + 2; w++) {
      if (w >= 0 && w < g.W) {
        // Only the lowest of the three lines is new, and its pixels lie too far apart for the hardware to follow.
        __builtin_prefetch(line[2] + (w + kAhead) * step[2]);
        const LinePairs upper = pair_lines(input(line[0] + w * step[0]), input(line[1] + w * step[1]));
        const LinePairs lower = pair_lines(input(line[2] + w * step[2]), _mm512_setzero_si512());
        add_taps(first, upper, tap[2]);
        add_taps(second, upper, tap[1]);
        add_taps(third, upper, tap[0]);
        add_taps(first, lower, tap[2] + 2);
        add_taps(second, lower, tap[1] + 2);
        add_taps(third, lower, tap[0] + 2);
      }
      if (w >= left + 2) {
        store_sums(out + within * pitch, t.mid_activation, first);
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

template <Activation kActivation>
inline void depthwise_groups(const SeparableTask& t, int64_t row_begin, int64_t row_end, Bf16Pair* a) {
  const Geometry& g = t.geometry;
  const int64_t pitch = tile_pitch<Bf16Pair>(operands<Bf16>(g.C));
  const bool sliding =
      g.R == 3 && g.S == 3 && g.stride_h == 1 && g.stride_w == 1 && g.dilation_h == 1 && g.dilation_w == 1;
  for (int64_t c = 0; c < g.C; c += kPairChannels) {
    const int channels = static_cast<int>(smaller(kPairChannels, g.C - c));
    const PairInput<kActivation> input{t.input_activation, mask32(channels)};
    alignas(64) float bias[2][VecF::kLanes] = {};
    if (t.depthwise_bias)
      for (int i = 0; i < channels; i++)
        bias[i / 4 % 2][i / 8 * 4 + i % 4] = static_cast<const float*>(t.depthwise_bias)[c + i];
    const ChannelSums start{load(bias[0]), load(bias[1])};
    const Bf16Pair* const weight =
        static_cast<const Bf16Pair*>(t.depthwise) + c / kPairChannels * DepthwiseWeight<Bf16>::group_operands(g);
    const int64_t k = c / 2;
    Bf16Pair* const out = a + k / kChain * Gemm<Bf16Pair>::kMR * pitch + k % kChain;
    if (sliding)
      depthwise_3x3(t, input, weight, start, c, row_begin, row_end, out);
    else
      depthwise_any(t, input, weight, start, c, row_begin, row_end, out);
  }
}

inline void depthwise_pairs(const SeparableTask& t, int64_t row_begin, int64_t row_end, Bf16Pair* a) {
  if (t.input_activation == Activation::kNone)
    depthwise_groups<Activation::kNone>(t, row_begin, row_end, a);
  else if (t.input_activation == Activation::kRelu)
    depthwise_groups<Activation::kRelu>(t, row_begin, row_end, a);
  else
    depthwise_groups<Activation::kElu>(t, row_begin, row_end, a);  // any other
}

#endif

}  // namespace ik::cpu::IK_ISA
