// What a pool makes of its window's pixels: kVectors vectors of channels at a time.
#pragma once
#include "cpu/vec.h"

namespace ik::cpu::IK_ISA {

template <typename T>
struct SumOf {
  static constexpr int kVectors = 1;
  Vec<Accum<T>> sum = broadcast(Accum<T>(0));

  void add(const T* from, int64_t channels) { sum = sum + load_some(from, channels); }
  Vec<Accum<T>> vector(int) const { return sum; }
};

// NaN is larger than everything.
template <typename T>
struct MaxOf {
  static constexpr int kVectors = 1;
  Vec<Accum<T>> largest = broadcast(static_cast<Accum<T>>(-HUGE_VAL));

  void add(const T* from, int64_t channels) { largest = vmax_nan(largest, load_some(from, channels)); }
  Vec<Accum<T>> vector(int) const { return largest; }
};

#if IK_VEC_JOIN(IK_ISA) == 64
// As integers in the order of the numbers: the bits below the sign are inverted where it is set. NaN without a sign
// comes last, NaN with one first.
template <>
struct MaxOf<Bf16> {
  static constexpr int kVectors = 2, kChannels = 32;
  __m512i largest = _mm512_set1_epi16(kMinusInfinity), smallest = _mm512_set1_epi16(0x7fff);

  void add(const Bf16* from, int64_t channels) {
    const __m512i x = in_order(_mm512_maskz_loadu_epi16(mask32(channels), from));
    largest = _mm512_max_epi16(largest, x);
    smallest = _mm512_min_epi16(smallest, x);
  }
  VecF vector(int i) const {
    const __mmask32 nan = _mm512_cmplt_epi16_mask(smallest, _mm512_set1_epi16(kMinusInfinity));
    const __m512i bits = _mm512_mask_mov_epi16(in_order(largest), nan, _mm512_set1_epi16(0x7fc0));
    return widen_bf16(i == 0 ? _mm512_castsi512_si256(bits) : _mm512_extracti64x4_epi64(bits, 1));
  }

 private:
  static constexpr int16_t kMinusInfinity = static_cast<int16_t>(0x807f);
  static __m512i in_order(__m512i x) {
    constexpr int kXorAnd = 0x78;  // x ^ (sign & mask)
    return _mm512_ternarylogic_epi32(x, _mm512_srai_epi16(x, 15), _mm512_set1_epi16(0x7fff), kXorAnd);
  }
};
#endif

}  // namespace ik::cpu::IK_ISA
