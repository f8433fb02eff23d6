// Selects the vectors of one instruction set: define IK_ISA (portable, avx2 or avx512) before including. Templates that
// build on this header belong in namespace ik::cpu::IK_ISA, so that the linker never merges two instruction sets.
#pragma once
#ifndef IK_ISA
#error "define IK_ISA as portable, avx2 or avx512 before including cpu/vec.h"
#endif
#define IK_ISA_QUOTE_(name) #name
#define IK_ISA_QUOTE(name) IK_ISA_QUOTE_(name)
#define IK_ISA_JOIN_(name) cpu/vec_##name.h
#define IK_ISA_JOIN(name) IK_ISA_JOIN_(name)
#include IK_ISA_QUOTE(IK_ISA_JOIN(IK_ISA))
