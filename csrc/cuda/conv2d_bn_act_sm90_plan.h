// What the Hopper kernels of dense products plan with: which tensors the copy engine can read, how their depth is cut
// into stages, and what a kernel is expected to take.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cuda/conv2d_bn_act_sm90.cuh"

namespace ik::cuda {

constexpr int64_t kCopyBytes = 16;
constexpr int64_t kCopyElements = 8;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool is_copy_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kCopyBytes == 0; }

// The stride of a dimension of size 1 is never used, and may be anything: here it is what a dense tensor has.
template <typename View>
View with_plain_strides(View view, int64_t N, int64_t H, int64_t W, int64_t C) {
  if (W == 1) view.stride_w = H > 1 ? view.stride_h : N > 1 ? view.stride_n : C;
  if (H == 1) view.stride_h = W * view.stride_w;
  if (N == 1) view.stride_n = H * view.stride_h;
  return view;
}

template <typename View>
bool has_aligned_pixels(const View& view) {
  return is_copy_aligned(view.data) && view.stride_n % kCopyElements == 0 && view.stride_h % kCopyElements == 0 &&
         view.stride_w % kCopyElements == 0;
}

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
