// Storage types of the 16-bit dtypes and their scalar conversions. Everything is static: this header is compiled under
// several instruction sets, and no copy may be shared between them by the linker.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/types.h"

namespace ik::cpu {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

template <typename T>
struct AccumOf {
  using type = float;
};
template <>
struct AccumOf<double> {
  using type = double;
};
template <typename T>
using Accum = typename AccumOf<T>::type;

static inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
static inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

[[maybe_unused]] static inline float to_accum(float value) { return value; }
[[maybe_unused]] static inline double to_accum(double value) { return value; }
[[maybe_unused]] static inline float to_accum(Bf16 value) { return bits_float(uint32_t{value.bits} << 16); }
[[maybe_unused]] static inline float to_accum(F16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // 2^112 rebiases the exponent; subnormals become normal floats on the way.
  const float scaled = bits_float(magnitude << 13) * bits_float(0x77800000u);
  return bits_float(sign | float_bits(scaled));
}

[[maybe_unused]] static inline void from_accum(float value, float* out) { *out = value; }
[[maybe_unused]] static inline void from_accum(double value, double* out) { *out = value; }
[[maybe_unused]] static inline void from_accum(float value, Bf16* out) {
  const uint32_t bits = float_bits(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>(nan ? (bits >> 16 | 0x40u) : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
[[maybe_unused]] static inline void from_accum(float value, F16* out) {
  const uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu, half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 lets the FPU round at 2^-24
    half = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    magnitude += 0xfffu + (magnitude >> 13 & 1u);
    half = (magnitude - 0x38000000u) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace ik::cpu
