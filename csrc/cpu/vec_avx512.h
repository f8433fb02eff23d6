// Vectors of the AVX-512 (F, BW, VL, DQ) build: 64 bytes. The interface is described in vec_portable.h.
#pragma once
#include "cpu/intrinsics.h"
#include "cpu/storage.h"

namespace ik::cpu::IK_ISA {

template <typename A>
struct Vec;
template <>
struct Vec<float> {
  static constexpr int kLanes = 16;
  __m512 v;
};
template <>
struct Vec<double> {
  static constexpr int kLanes = 8;
  __m512d v;
};
using VecF = Vec<float>;
using VecD = Vec<double>;

// The first n lanes; mask32 takes any n.
inline __mmask32 mask32(int64_t n) { return n >= 32 ? ~__mmask32{0} : (__mmask32{1} << n) - 1; }
inline __mmask16 mask16(int n) { return static_cast<__mmask16>((1u << n) - 1); }
inline __mmask8 mask8(int n) { return static_cast<__mmask8>((1u << n) - 1); }

template <typename A>
Vec<A> broadcast(A value);
template <>
inline VecF broadcast<float>(float value) {
  return {_mm512_set1_ps(value)};
}
template <>
inline VecD broadcast<double>(double value) {
  return {_mm512_set1_pd(value)};
}

inline VecF widen_bf16(__m256i bits) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline __m256i narrow_bf16(VecF a) {
#if defined(__AVX512BF16__)
  const __m256bh narrow = _mm512_cvtneps_pbh(a.v);  // a subnormal becomes zero
  return reinterpret_cast<const __m256i&>(narrow);
#else
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i all = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(all, 16));
#endif
}
inline __m256i narrow_f16(VecF a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline VecF load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline VecD load(const double* from) { return {_mm512_loadu_pd(from)}; }
inline VecF load(const Bf16* from) { return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline VecF load(const F16* from) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
inline VecF load(const float* from, int n) { return {_mm512_maskz_loadu_ps(mask16(n), from)}; }
inline VecD load(const double* from, int n) { return {_mm512_maskz_loadu_pd(mask8(n), from)}; }
inline VecF load(const Bf16* from, int n) { return widen_bf16(_mm256_maskz_loadu_epi16(mask16(n), from)); }
inline VecF load(const F16* from, int n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask16(n), from))}; }

inline void store(float* to, VecF a) { _mm512_storeu_ps(to, a.v); }
inline void store(double* to, VecD a) { _mm512_storeu_pd(to, a.v); }
inline void store(Bf16* to, VecF a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow_bf16(a)); }
inline void store(F16* to, VecF a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow_f16(a)); }
inline void store(float* to, VecF a, int n) { _mm512_mask_storeu_ps(to, mask16(n), a.v); }
inline void store(double* to, VecD a, int n) { _mm512_mask_storeu_pd(to, mask8(n), a.v); }
inline void store(Bf16* to, VecF a, int n) { _mm256_mask_storeu_epi16(to, mask16(n), narrow_bf16(a)); }
inline void store(F16* to, VecF a, int n) { _mm256_mask_storeu_epi16(to, mask16(n), narrow_f16(a)); }

inline VecF operator+(VecF a, VecF b) { return {_mm512_add_ps(a.v, b.v)}; }
inline VecD operator+(VecD a, VecD b) { return {_mm512_add_pd(a.v, b.v)}; }
inline VecF operator-(VecF a, VecF b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline VecD operator-(VecD a, VecD b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline VecF operator*(VecF a, VecF b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline VecD operator*(VecD a, VecD b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline VecF operator/(VecF a, VecF b) { return {_mm512_div_ps(a.v, b.v)}; }
inline VecD operator/(VecD a, VecD b) { return {_mm512_div_pd(a.v, b.v)}; }
inline VecF fmadd(VecF a, VecF b, VecF c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline VecD fmadd(VecD a, VecD b, VecD c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
// sum = fmadd(a, b, sum) in sum's own register: in loops of many sums gcc 12 renames them, and then spills some.
inline void accumulate(VecF& sum, VecF a, VecF b) {
  __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
}
inline void accumulate(VecD& sum, VecD a, VecD b) {
  __asm__("vfmadd231pd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
}
inline VecF vmax(VecF a, VecF b) { return {_mm512_max_ps(a.v, b.v)}; }
inline VecD vmax(VecD a, VecD b) { return {_mm512_max_pd(a.v, b.v)}; }
inline VecF vmax_nan(VecF a, VecF b) {
  return {_mm512_mask_mov_ps(_mm512_max_ps(a.v, b.v), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
}
inline VecD vmax_nan(VecD a, VecD b) {
  return {_mm512_mask_mov_pd(_mm512_max_pd(a.v, b.v), _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
}
inline VecF vmin(VecF a, VecF b) { return {_mm512_min_ps(a.v, b.v)}; }
inline VecD vmin(VecD a, VecD b) { return {_mm512_min_pd(a.v, b.v)}; }
inline VecF where_greater(VecF a, VecF b, VecF yes, VecF no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
}
inline VecD where_greater(VecD a, VecD b, VecD yes, VecD no) {
  return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
}
inline VecF where_greater_or_nan(VecF a, VecF b, VecF yes, VecF no) {
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) | nan, no.v, yes.v)};
}
inline VecD where_greater_or_nan(VecD a, VecD b, VecD yes, VecD no) {
  const __mmask8 nan = _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q);
  return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ) | nan, no.v, yes.v)};
}
inline void store_bytes(uint8_t* to, VecF a, int n) {
  _mm_mask_storeu_epi8(to, mask16(n), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
inline void store_bytes(uint8_t* to, VecD a, int n) {
  _mm_mask_storeu_epi8(to, mask16(n), _mm256_cvtepi32_epi8(_mm512_cvtpd_epi32(a.v)));
}
inline __mmask16 bytes_equal(const uint8_t* bytes, int number, int n) {
  return _mm_cmpeq_epi8_mask(_mm_maskz_loadu_epi8(mask16(n), bytes), _mm_set1_epi8(static_cast<char>(number)));
}
inline VecF add_where_byte(VecF sum, VecF a, const uint8_t* bytes, int number, int n) {
  return {_mm512_mask_add_ps(sum.v, bytes_equal(bytes, number, n), sum.v, a.v)};
}
inline VecD add_where_byte(VecD sum, VecD a, const uint8_t* bytes, int number, int n) {
  return {_mm512_mask_add_pd(sum.v, static_cast<__mmask8>(bytes_equal(bytes, number, n)), sum.v, a.v)};
}
inline bool any_nan(VecF a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q) != 0; }
inline bool any_nan(VecD a) { return _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q) != 0; }
inline VecF round_nearest(VecF a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline VecF power_of_two(VecF a) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}
inline void interleave(VecF a, VecF b, VecF* low, VecF* high) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  low->v = _mm512_permutex2var_ps(a.v, first, b.v);
  high->v = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(first, _mm512_set1_epi32(8)), b.v);
}
inline void interleave(VecD a, VecD b, VecD* low, VecD* high) {
  const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  low->v = _mm512_permutex2var_pd(a.v, first, b.v);
  high->v = _mm512_permutex2var_pd(a.v, _mm512_add_epi64(first, _mm512_set1_epi64(4)), b.v);
}
template <typename A>
inline A horizontal_sum(Vec<A> a) {
  A lanes[Vec<A>::kLanes], sum = 0;
  store(lanes, a);
  for (A lane : lanes) sum += lane;
  return sum;
}

}  // namespace ik::cpu::IK_ISA
