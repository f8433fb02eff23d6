// Sizes and their arithmetic, for the templates of one instruction set (see vec.h).
#pragma once
#include <cstdint>

namespace ik::cpu::IK_ISA {

constexpr int64_t kCacheLine = 64;  // bytes

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace ik::cpu::IK_ISA
