// What the operands of a product (gemm.h) consist of: elements of the accumulation type or, where the instruction set
// multiplies bf16 in pairs, pairs of channels. Pixels and weights hold whole operands: an odd channel's partner is
// zero.
#pragma once
#include "cpu/vec.h"

namespace ik::cpu::IK_ISA {

template <typename T>
struct OperandOf {
  using type = Accum<T>;
  static constexpr int kDepth = 1;
};

#if defined(__AVX512BF16__)
// The lower half is the first channel. Read from bf16 elements, and aligned as they are.
struct __attribute__((may_alias, packed, aligned(2))) Bf16Pair {
  uint32_t bits;
};
template <>
struct OperandOf<Bf16> {
  using type = Bf16Pair;
  static constexpr int kDepth = 2;
};
template <>
struct Vec<Bf16Pair> {
  static constexpr int kLanes = 16;
  __m512i v;
};
using VecPair = Vec<Bf16Pair>;

template <>
inline VecPair broadcast<Bf16Pair>(Bf16Pair value) {
  return {_mm512_set1_epi32(static_cast<int>(value.bits))};
}
inline VecPair load(const Bf16Pair* from) { return {_mm512_loadu_si512(from)}; }
inline void store(Bf16Pair* to, VecPair a) { _mm512_storeu_si512(to, a.v); }
inline void store(Bf16Pair* to, VecPair a, int n) { _mm512_mask_storeu_epi32(to, mask16(n), a.v); }
// Both products of every lane, added to its sum.
inline void accumulate(VecF& sum, VecPair a, VecPair b) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
}
inline void interleave(VecPair a, VecPair b, VecPair* low, VecPair* high) {
  VecF first, second;
  interleave(VecF{_mm512_castsi512_ps(a.v)}, VecF{_mm512_castsi512_ps(b.v)}, &first, &second);
  low->v = _mm512_castps_si512(first.v);
  high->v = _mm512_castps_si512(second.v);
}

// The first n of a vector's channels, in pairs; zero beyond.
inline VecPair load_operands(const Bf16* from, int n) {
  return {n >= 32 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16(mask32(n), from)};
}
// From values that are bf16 already.
inline VecPair join(VecF first, VecF second) {
  return {_mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(first.v), 16), _mm512_castps_si512(second.v))};
}
inline VecPair add_second(VecPair first, VecF second) {
  return {_mm512_or_si512(first.v, _mm512_castps_si512(second.v))};
}
inline VecF first_of(VecPair a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))}; }
inline VecF second_of(VecPair a) {
  return {_mm512_castsi512_ps(_mm512_and_si512(a.v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
#endif

template <typename T>
using Operand = typename OperandOf<T>::type;
template <typename T>
constexpr int kDepth = OperandOf<T>::kDepth;

// Operands that hold n channels.
template <typename T>
inline int64_t operands(int64_t n) {
  return (n + kDepth<T> - 1) / kDepth<T>;
}

// The first n channels of a vector of operands; zero beyond.
template <typename T>
inline Vec<Accum<T>> load_operands(const T* from, int n) {
  return load_some(from, n);
}

}  // namespace ik::cpu::IK_ISA
