// Vectors of the AVX2 + FMA + F16C build: 32 bytes. The interface is described in vec_portable.h.
#pragma once
#include "cpu/intrinsics.h"
#include "cpu/storage.h"

namespace ik::cpu::IK_ISA {

template <typename A>
struct Vec;
template <>
struct Vec<float> {
  static constexpr int kLanes = 8;
  __m256 v;
};
template <>
struct Vec<double> {
  static constexpr int kLanes = 4;
  __m256d v;
};
using VecF = Vec<float>;
using VecD = Vec<double>;

alignas(32) inline constexpr int32_t kMask32[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
inline __m256i mask32(int n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask32 + 8 - n)); }
inline __m256i mask64(int n) {
  return _mm256_cvtepi32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kMask32 + 8 - n)));
}

template <typename A>
Vec<A> broadcast(A value);
template <>
inline VecF broadcast<float>(float value) {
  return {_mm256_set1_ps(value)};
}
template <>
inline VecD broadcast<double>(double value) {
  return {_mm256_set1_pd(value)};
}

inline VecF widen_bf16(__m128i bits) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
inline __m128i narrow_bf16(VecF a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
template <typename T>
inline __m128i load_bits16(const T* from, int n) {
  alignas(16) uint16_t bits[8] = {};
  for (int i = 0; i < n; i++) bits[i] = from[i].bits;
  return _mm_load_si128(reinterpret_cast<const __m128i*>(bits));
}
template <typename T>
inline void store_bits16(T* to, __m128i value, int n) {
  alignas(16) uint16_t bits[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(bits), value);
  for (int i = 0; i < n; i++) to[i].bits = bits[i];
}

inline VecF load(const float* from) { return {_mm256_loadu_ps(from)}; }
inline VecD load(const double* from) { return {_mm256_loadu_pd(from)}; }
inline VecF load(const Bf16* from) { return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
inline VecF load(const F16* from) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))}; }
inline VecF load(const float* from, int n) { return {_mm256_maskload_ps(from, mask32(n))}; }
inline VecD load(const double* from, int n) { return {_mm256_maskload_pd(from, mask64(n))}; }
inline VecF load(const Bf16* from, int n) { return widen_bf16(load_bits16(from, n)); }
inline VecF load(const F16* from, int n) { return {_mm256_cvtph_ps(load_bits16(from, n))}; }

inline void store(float* to, VecF a) { _mm256_storeu_ps(to, a.v); }
inline void store(double* to, VecD a) { _mm256_storeu_pd(to, a.v); }
inline void store(Bf16* to, VecF a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow_bf16(a)); }
inline void store(F16* to, VecF a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store(float* to, VecF a, int n) { _mm256_maskstore_ps(to, mask32(n), a.v); }
inline void store(double* to, VecD a, int n) { _mm256_maskstore_pd(to, mask64(n), a.v); }
inline void store(Bf16* to, VecF a, int n) { store_bits16(to, narrow_bf16(a), n); }
inline void store(F16* to, VecF a, int n) { store_bits16(to, _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT), n); }

inline VecF operator+(VecF a, VecF b) { return {_mm256_add_ps(a.v, b.v)}; }
inline VecD operator+(VecD a, VecD b) { return {_mm256_add_pd(a.v, b.v)}; }
inline VecF operator-(VecF a, VecF b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline VecD operator-(VecD a, VecD b) { return {_mm256_sub_pd(a.v, b.v)}; }
inline VecF operator*(VecF a, VecF b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline VecD operator*(VecD a, VecD b) { return {_mm256_mul_pd(a.v, b.v)}; }
inline VecF operator/(VecF a, VecF b) { return {_mm256_div_ps(a.v, b.v)}; }
inline VecD operator/(VecD a, VecD b) { return {_mm256_div_pd(a.v, b.v)}; }
inline VecF fmadd(VecF a, VecF b, VecF c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline VecD fmadd(VecD a, VecD b, VecD c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
inline void accumulate(VecF& sum, VecF a, VecF b) { sum = fmadd(a, b, sum); }
inline void accumulate(VecD& sum, VecD a, VecD b) { sum = fmadd(a, b, sum); }
inline VecF vmax(VecF a, VecF b) { return {_mm256_max_ps(a.v, b.v)}; }
inline VecD vmax(VecD a, VecD b) { return {_mm256_max_pd(a.v, b.v)}; }
inline VecF vmax_nan(VecF a, VecF b) {
  return {_mm256_blendv_ps(_mm256_max_ps(a.v, b.v), a.v, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q))};
}
inline VecD vmax_nan(VecD a, VecD b) {
  return {_mm256_blendv_pd(_mm256_max_pd(a.v, b.v), a.v, _mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q))};
}
inline VecF vmin(VecF a, VecF b) { return {_mm256_min_ps(a.v, b.v)}; }
inline VecD vmin(VecD a, VecD b) { return {_mm256_min_pd(a.v, b.v)}; }
inline VecF where_greater(VecF a, VecF b, VecF yes, VecF no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))};
}
inline VecD where_greater(VecD a, VecD b, VecD yes, VecD no) {
  return {_mm256_blendv_pd(no.v, yes.v, _mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ))};
}
inline VecF where_greater_or_nan(VecF a, VecF b, VecF yes, VecF no) {
  const __m256 greater = _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ), nan = _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q);
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_or_ps(greater, nan))};
}
inline VecD where_greater_or_nan(VecD a, VecD b, VecD yes, VecD no) {
  const __m256d greater = _mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ), nan = _mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q);
  return {_mm256_blendv_pd(no.v, yes.v, _mm256_or_pd(greater, nan))};
}
inline __m128i load_bytes(const uint8_t* from, int n) {
  alignas(16) uint8_t bytes[16] = {};
  std::memcpy(bytes, from, n);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
}
inline void store_bytes(uint8_t* to, __m128i words, int n) {
  alignas(16) uint8_t bytes[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(bytes), _mm_packus_epi16(words, words));
  std::memcpy(to, bytes, n);
}
inline void store_bytes(uint8_t* to, VecF a, int n) {
  const __m256i numbers = _mm256_cvtps_epi32(a.v);
  store_bytes(to, _mm_packus_epi32(_mm256_castsi256_si128(numbers), _mm256_extracti128_si256(numbers, 1)), n);
}
inline void store_bytes(uint8_t* to, VecD a, int n) {
  const __m128i numbers = _mm256_cvtpd_epi32(a.v);
  store_bytes(to, _mm_packus_epi32(numbers, numbers), n);
}
inline VecF add_where_byte(VecF sum, VecF a, const uint8_t* bytes, int number, int n) {
  const __m256i equal = _mm256_cmpeq_epi32(_mm256_cvtepu8_epi32(load_bytes(bytes, n)), _mm256_set1_epi32(number));
  return {_mm256_add_ps(sum.v, _mm256_and_ps(_mm256_castsi256_ps(equal), a.v))};
}
inline VecD add_where_byte(VecD sum, VecD a, const uint8_t* bytes, int number, int n) {
  const __m256i equal = _mm256_cmpeq_epi64(_mm256_cvtepu8_epi64(load_bytes(bytes, n)), _mm256_set1_epi64x(number));
  return {_mm256_add_pd(sum.v, _mm256_and_pd(_mm256_castsi256_pd(equal), a.v))};
}
inline bool any_nan(VecF a) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)) != 0; }
inline bool any_nan(VecD a) { return _mm256_movemask_pd(_mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q)) != 0; }
inline VecF round_nearest(VecF a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline VecF power_of_two(VecF a) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}
inline void interleave(VecF a, VecF b, VecF* low, VecF* high) {
  const __m256 even = _mm256_unpacklo_ps(a.v, b.v), odd = _mm256_unpackhi_ps(a.v, b.v);
  low->v = _mm256_permute2f128_ps(even, odd, 0x20);
  high->v = _mm256_permute2f128_ps(even, odd, 0x31);
}
inline void interleave(VecD a, VecD b, VecD* low, VecD* high) {
  const __m256d even = _mm256_unpacklo_pd(a.v, b.v), odd = _mm256_unpackhi_pd(a.v, b.v);
  low->v = _mm256_permute2f128_pd(even, odd, 0x20);
  high->v = _mm256_permute2f128_pd(even, odd, 0x31);
}
template <typename A>
inline A horizontal_sum(Vec<A> a) {
  A lanes[Vec<A>::kLanes], sum = 0;
  store(lanes, a);
  for (A lane : lanes) sum += lane;
  return sum;
}

}  // namespace ik::cpu::IK_ISA
