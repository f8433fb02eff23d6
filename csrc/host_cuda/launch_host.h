// launch.h for execution on the host.
#pragma once
#include <stdexcept>
#include <string>

#include "cuda/shared_limit.h"

namespace ik::cuda {

template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                   LaunchOptions options, const Context& context, Arguments&&... arguments) {
  host_cuda::launch({name,
                     reinterpret_cast<const void*>(kernel),
                     {grid.x, grid.y, grid.z},
                     {block.x, block.y, block.z},
                     shared,
                     static_cast<size_t>(shared_limit(context.sm)),
                     options.cluster,
                     options.overlapped},
                    [&]() __attribute__((no_sanitize("thread"))) { kernel(static_cast<Parameters>(arguments)...); });
}

template <typename... Parameters>
int resident_clusters(void (*)(Parameters...), int cluster, dim3, size_t, const Context& context) {
  return context.multiprocessors / cluster;
}

inline TensorMap make_tensor_map(const TensorMapShape& shape) {
  const int rank = static_cast<int>(shape.sizes.size());
  const int64_t element_size = shape.dtype == DType::kFloat64 ? 8 : shape.dtype == DType::kFloat32 ? 4 : 2;
  TensorMap map = {};
  map.base = reinterpret_cast<uint64_t>(shape.base);
  map.rank = rank;
  map.element_size = static_cast<int>(element_size);
  map.swizzle = static_cast<int>(shape.swizzle);
  for (int i = 0; i < rank; ++i) {
    map.size[i] = shape.sizes.begin()[i];
    map.stride[i] = i == 0 ? element_size : shape.strides.begin()[i - 1] * element_size;
    map.box[i] = shape.box.begin()[i];
    map.step[i] = shape.steps.size() ? shape.steps.begin()[i] : 1;
  }
  host_cuda::validate(map);
  return map;
}

inline TensorMap make_im2col_map(const Im2colMapShape& given) {
  if (!im2col_fits(given.shape)) throw std::runtime_error("no im2col map has this window, stride or padding");
  const ConvShape& shape = given.shape;
  TensorMap map = make_tensor_map({given.dtype,
                                   given.x.data,
                                   {shape.C, shape.W, shape.H, shape.N},
                                   {given.x.stride_w, given.x.stride_h, given.x.stride_n},
                                   {given.channels, 1, 1, 1},
                                   given.swizzle,
                                   {1, static_cast<int>(shape.stride_w), static_cast<int>(shape.stride_h), 1}});
  map.pixels = given.pixels;
  map.lower[0] = static_cast<int>(-shape.pad_w);
  map.lower[1] = static_cast<int>(-shape.pad_h);
  map.upper[0] = static_cast<int>(shape.pad_w - shape.dilation_w * (shape.S - 1));
  map.upper[1] = static_cast<int>(shape.pad_h - shape.dilation_h * (shape.R - 1));
  return map;
}

}  // namespace ik::cuda
