// Kernel launches and tensor maps: the same calls whether nvcc compiles them or they execute on the host.
#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "common/types.h"
#include "cuda/context.h"
#include "cuda/primitives.cuh"

namespace ik::cuda {

struct LaunchOptions {
  int cluster = 1;          // blocks of a cluster, along x
  bool overlapped = false;  // programmatic dependent launch: may start before the stream's previous kernel has ended
};

// A copy of tiles between global and shared memory. Everything is listed innermost dimension first.
struct TensorMapShape {
  DType dtype;
  const void* base;                        // 16-byte aligned
  std::initializer_list<int64_t> sizes;    // elements
  std::initializer_list<int64_t> strides;  // elements, of dimensions 1, 2, ...: the innermost one is contiguous
  std::initializer_list<int> box;          // elements of the tensor that one copy spans
  Swizzle swizzle = Swizzle::k128;
  std::initializer_list<int> steps = {};  // copies every steps[i]-th element of the box; empty = 1
};

// Throws std::runtime_error where the hardware has no such map.
TensorMap make_tensor_map(const TensorMapShape& shape);

// The pixels of x [N, H, W, C] under the taps of a convolution, for tma_load_im2col_4d: `pixels` rows of `channels`.
// The base pixels are those under tap 0, from (-pad_h, -pad_w) on in steps of the stride.
struct Im2colMapShape {
  DType dtype;
  const NhwcInput& x;  // 16-byte aligned, strides multiples of 16 bytes
  const ConvShape& shape;
  int channels;
  int pixels;
  Swizzle swizzle = Swizzle::k128;
};

// Throws std::runtime_error where the hardware has no such map: see im2col_fits.
TensorMap make_im2col_map(const Im2colMapShape& shape);

// Whether padding, window and stride lie within what the hardware's im2col mode can express.
inline bool im2col_fits(const ConvShape& shape) {
  constexpr int64_t kLowest = -128, kHighest = 127, kMaxOffset = 255, kMaxStep = 8;
  const auto fits = [](int64_t window, int64_t stride, int64_t pad, int64_t dilation) {
    const int64_t span = dilation * (window - 1);
    return -pad >= kLowest && pad - span >= kLowest && pad - span <= kHighest && span < kMaxOffset &&
           stride <= kMaxStep;
  };
  return fits(shape.R, shape.stride_h, shape.pad_h, shape.dilation_h) &&
         fits(shape.S, shape.stride_w, shape.pad_w, shape.dilation_w);
}

}  // namespace ik::cuda

#ifdef __CUDACC__
#include "cuda/launch_device.h"
#else
#include "host_cuda/launch_host.h"
#endif

// IK_LAUNCH((kernel<A, B>), grid, block, bytes of dynamic shared memory, context, arguments...)
#define IK_LAUNCH(kernel, grid, block, shared, context, ...) \
  ::ik::cuda::launch_kernel(#kernel, kernel, grid, block, shared, ::ik::cuda::LaunchOptions{}, context, __VA_ARGS__)
#define IK_LAUNCH_CLUSTER(kernel, cluster, grid, block, shared, context, ...)                                         \
  ::ik::cuda::launch_kernel(#kernel, kernel, grid, block, shared, ::ik::cuda::LaunchOptions{cluster, false}, context, \
                            __VA_ARGS__)
#define IK_LAUNCH_OVERLAPPED(kernel, cluster, grid, block, shared, context, ...)                                     \
  ::ik::cuda::launch_kernel(#kernel, kernel, grid, block, shared, ::ik::cuda::LaunchOptions{cluster, true}, context, \
                            __VA_ARGS__)
