// The vectors of one instruction set. A compile unit defines IK_ISA as portable, avx2, avx512, avx512bf16 or amx before
// its first include; all templates built on this header live in namespace ik::cpu::IK_ISA, so that the linker never
// merges code compiled for two instruction sets.
#pragma once
#ifndef IK_ISA
#error "define IK_ISA as portable, avx2, avx512, avx512bf16 or amx before including cpu/vec.h"
#endif

#define IK_VEC_portable 16
#define IK_VEC_avx2 32
#define IK_VEC_avx512 64
#define IK_VEC_avx512bf16 64
#define IK_VEC_amx 64
#define IK_VEC_JOIN_(isa) IK_VEC_##isa
#define IK_VEC_JOIN(isa) IK_VEC_JOIN_(isa)

#if IK_VEC_JOIN(IK_ISA) == 64
#include "cpu/vec_avx512.h"
#elif IK_VEC_JOIN(IK_ISA) == 32
#include "cpu/vec_avx2.h"
#elif IK_VEC_JOIN(IK_ISA) == 16
#include "cpu/vec_portable.h"
#else
#error "IK_ISA names no known instruction set"
#endif

namespace ik::cpu::IK_ISA {

// The first n (at least one) elements of a vector; zero beyond.
template <typename T>
inline Vec<Accum<T>> load_some(const T* from, int64_t n) {
  return n >= Vec<Accum<T>>::kLanes ? load(from) : load(from, static_cast<int>(n));
}

}  // namespace ik::cpu::IK_ISA
