// What a pool makes of its window's pixels: kVectors vectors of channels at a time.
#pragma once
#include "cpu/vec.h"

namespace ik::cpu::IK_ISA {

// add() takes whole vectors, or the first `channels`; map(vector) is what each vector becomes before it is stored.
template <typename T>
struct SumOf {
  static constexpr int kVectors = 1;
  Vec<Accum<T>> sum = broadcast(Accum<T>(0));

  void add(const T* from) { sum = sum + load(from); }
  void add(const T* from, int64_t channels) { sum = sum + load_some(from, channels); }
  Vec<Accum<T>> vector(int) const { return sum; }
  template <typename Map>
  void store_whole(T* to, const Map& map) const {
    store(to, map(sum));
  }
};

// NaN is larger than everything.
template <typename T>
struct MaxOf {
  static constexpr int kVectors = 1;
  Vec<Accum<T>> largest = broadcast(static_cast<Accum<T>>(-HUGE_VAL));

  void add(const T* from) { largest = vmax_nan(largest, load(from)); }
  void add(const T* from, int64_t channels) { largest = vmax_nan(largest, load_some(from, channels)); }
  Vec<Accum<T>> vector(int) const { return largest; }
  template <typename Map>
  void store_whole(T* to, const Map& map) const {
    store(to, map(largest));
  }
};

#if IK_VEC_JOIN(IK_ISA) == 64
// A bf16 is the upper half of its float: channels of odd number are read in place, the others shifted there.
template <>
struct SumOf<Bf16> {
  static constexpr int kVectors = 2;
  VecF even = broadcast(0.0f), odd = broadcast(0.0f);

  void add(const Bf16* from) { add_bits(_mm512_loadu_si512(from)); }
  void add(const Bf16* from, int64_t channels) { add_bits(_mm512_maskz_loadu_epi16(mask32(channels), from)); }
  VecF vector(int i) const {
    const __m512i alternating = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i from = i == 0 ? alternating : _mm512_add_epi32(alternating, _mm512_set1_epi32(8));
    return {_mm512_permutex2var_ps(even.v, from, odd.v)};
  }
  template <typename Map>
  void store_whole(Bf16* to, const Map& map) const {
    const __m512i low = _mm512_srli_epi32(rounded(map(even)), 16), high = rounded(map(odd));
    _mm512_storeu_si512(to, _mm512_mask_mov_epi16(low, 0xaaaaaaaa, high));
  }

 private:
  void add_bits(__m512i x) {
    even = even + VecF{_mm512_castsi512_ps(_mm512_slli_epi32(x, 16))};
    odd = odd + VecF{_mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000))))};
  }
  // To the nearest bf16, of two the even one, in the upper half.
  static __m512i rounded(VecF a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last);
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
  }
};

// As integers in the order of the numbers: the bits below the sign are inverted where it is set. NaN without a sign
// comes last, NaN with one first.
template <>
struct MaxOf<Bf16> {
  static constexpr int kVectors = 2;
  __m512i largest = _mm512_set1_epi16(kMinusInfinity), smallest = _mm512_set1_epi16(0x7fff);

  void add(const Bf16* from) { add_bits(_mm512_loadu_si512(from)); }
  void add(const Bf16* from, int64_t channels) { add_bits(_mm512_maskz_loadu_epi16(mask32(channels), from)); }
  VecF vector(int i) const {
    return widen_bf16(i == 0 ? _mm512_castsi512_si256(bits()) : _mm512_extracti64x4_epi64(bits(), 1));
  }
  // A maximum needs no rounding, and nothing else is asked of it.
  template <typename Map>
  void store_whole(Bf16* to, const Map&) const {
    _mm512_storeu_si512(to, bits());
  }

 private:
  static constexpr int16_t kMinusInfinity = static_cast<int16_t>(0x807f);
  void add_bits(__m512i bits) {
    const __m512i x = in_order(bits);
    largest = _mm512_max_epi16(largest, x);
    smallest = _mm512_min_epi16(smallest, x);
  }
  __m512i bits() const {
    const __mmask32 nan = _mm512_cmplt_epi16_mask(smallest, _mm512_set1_epi16(kMinusInfinity));
    return _mm512_mask_mov_epi16(in_order(largest), nan, _mm512_set1_epi16(0x7fc0));
  }
  static __m512i in_order(__m512i x) {
    constexpr int kXorAnd = 0x78;  // x ^ (sign & mask)
    return _mm512_ternarylogic_epi32(x, _mm512_srai_epi16(x, 15), _mm512_set1_epi16(0x7fff), kXorAnd);
  }
};
#endif

}  // namespace ik::cpu::IK_ISA
