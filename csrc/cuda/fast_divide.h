// Division by a number that only the host knows at launch: one multiplication and a shift.
#pragma once
#include <cstdint>

#include "cuda/primitives.cuh"

namespace ik::cuda {

struct FastDivide {
  uint32_t divisor = 1;
  uint32_t multiplier = 0;
  uint32_t shift = 0;

  FastDivide() = default;
  // Exact for dividends below 2^31: multiplier = ceil(2^(31 + bits) / divisor) where 2^bits >= divisor.
  explicit FastDivide(int64_t value) : divisor(static_cast<uint32_t>(value)) {
    uint32_t bits = 0;
    while ((uint64_t{1} << bits) < divisor) ++bits;
    if (bits == 0) return;
    shift = bits - 1;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << (31 + bits)) + divisor - 1) / divisor);
  }

  IK_DEVICE int quotient(int dividend) const {
    if (multiplier == 0) return dividend;
    const uint32_t high =
        static_cast<uint32_t>((static_cast<uint64_t>(multiplier) * static_cast<uint32_t>(dividend)) >> 32);
    return static_cast<int>(high >> shift);
  }
};

}  // namespace ik::cuda
