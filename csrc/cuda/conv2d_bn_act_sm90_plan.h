// What the Hopper kernels of dense products plan with: how their depth is cut into stages, and what a kernel is
// expected to take.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cuda/conv2d_bn_act_sm90.cuh"
#include "cuda/copied_views.h"

namespace ik::cuda {

// Channels of a slice, the narrow one where it saves stages; and stages.
struct SliceDepth {
  int channels;
  int iterations;

  Swizzle swizzle() const { return channels == kConvStageDepth ? Swizzle::k128 : Swizzle::k64; }
};

inline SliceDepth depth_of(const ConvShape& shape) {
  constexpr int kWide = kConvStageDepth;
  constexpr int kNarrow = kConvStageDepth / 2;
  const int64_t taps = shape.R * shape.S;
  const int64_t wide = taps * ceil_div(shape.C, kWide);
  const int64_t narrow = ceil_div(taps * ceil_div(shape.C, kNarrow), kWide / kNarrow);
  return narrow < wide ? SliceDepth{kNarrow, static_cast<int>(narrow)} : SliceDepth{kWide, static_cast<int>(wide)};
}

// Of a stage of `bytes` for so many accumulators of a block: set by the tensor cores or by the copies from L2.
inline double predicted_stage_clocks(double outputs, double bytes, int64_t tiles, int multiprocessors) {
  constexpr double kL2BytesPerClock = 36;     // of one multiprocessor when all of them copy
  constexpr double kCopyBytesPerClock = 64;   // of one alone
  constexpr double kProductsPerClock = 2048;  // 16-bit, dense
  const double busy = std::min<double>(1, static_cast<double>(tiles) / multiprocessors);
  const double copy = bytes * std::max(busy / kL2BytesPerClock, 1 / kCopyBytesPerClock);
  return std::max(outputs * kConvStageDepth / kProductsPerClock, copy);
}

// Of a kernel whose tiles take `stages` clocks for their stages and then store `outputs`.
inline double predicted_kernel_clocks(int64_t tiles, int multiprocessors, double stages, double outputs) {
  constexpr double kStartClocks = 1500;  // until the first stage is full
  constexpr double kOutputsPerClock = 24;
  const double waves = static_cast<double>(ceil_div(tiles, multiprocessors));
  return kStartClocks + waves * (stages + outputs / kOutputsPerClock);
}

}  // namespace ik::cuda
