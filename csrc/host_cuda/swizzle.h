// The swizzles of TMA and wgmma: 16-byte chunks change places within 8 rows of 32, 64 or 128 bytes.
#pragma once
#include <cstdint>

namespace ik::host_cuda {

enum SwizzleMode : int { kSwizzleNone, kSwizzle32, kSwizzle64, kSwizzle128 };

// Bytes of a row.
constexpr uint32_t swizzle_span(int mode) { return mode == kSwizzleNone ? 16 : 16u << mode; }

constexpr uint32_t swizzled(uint32_t address, int mode) {
  if (mode == kSwizzleNone) return address;
  return address ^ ((address >> 3) & (swizzle_span(mode) - 16));
}

}  // namespace ik::host_cuda
