// Per-thread buffers, kept between calls and grown on demand. Their content is unspecified.
#pragma once
#include <cstddef>

namespace ik::cpu {

enum class Scratch : int {
  kTile,
  kRows,
  kSegments,
  kIntermediate,
  kTaps,
  kRestored,
  kCombined,
  // Of the gradients, which call the forward kernels above.
  kStrip,
  kGradient,
  kPacked,
  kDepthwise,
  kPartial,
  kVectors,
  kSums,
  kOffsets,
  // Of a program, which calls the forward kernels as well.
  kArena,
  kCount
};

// At least `bytes` bytes on a 64-byte boundary, valid until this thread asks for the same buffer again.
void* scratch(Scratch which, size_t bytes);

}  // namespace ik::cpu
