#include "max_pool2d.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/checks.h"

namespace ik {

namespace {

using torch::headeronly::ScalarType;

PoolShape window_of_bytes(int64_t N, int64_t C, int64_t H, int64_t W, const Pair& kernel, const Pair& stride,
                          const Pair& padding) {
  const PoolShape shape = pool_shape(N, C, H, W, kernel, stride, padding);
  constexpr int64_t kMost = 256;
  STD_TORCH_CHECK(shape.R <= kMost && shape.S <= kMost && shape.R * shape.S <= kMost,
                  "kernel: expected a window of 1 to 256 pixels, got ", describe(kernel));
  return shape;
}

}  // namespace

// y [N, C, P, Q], channels-last.
Tensor max_pool2d(const Tensor& x, Pair kernel, Pair stride, Pair padding) {
  check_activations(x, "x");
  const PoolShape shape = pool_shape(x.size(0), x.size(1), x.size(2), x.size(3), kernel, stride, padding);
  Tensor y = empty_activations(x, shape.N, shape.C, shape.P(), shape.Q(), true);
  if (shape.N == 0) return y;
  const Tensor input = with_adjacent_channels(x);
  cpu::max_pool2d(shape, dtype_of(x, "x"), input_view(input), output_view(y));
  return y;
}

// y [N, C, P, Q] and taps [N, C, P, Q] uint8, both channels-last.
std::tuple<Tensor, Tensor> max_pool2d_training(const Tensor& x, Pair kernel, Pair stride, Pair padding) {
  check_activations(x, "x");
  const PoolShape shape = window_of_bytes(x.size(0), x.size(1), x.size(2), x.size(3), kernel, stride, padding);
  Tensor y = empty_activations(x, shape.N, shape.C, shape.P(), shape.Q(), true);
  Tensor taps = empty_activations(x, shape.N, shape.C, shape.P(), shape.Q(), true, ScalarType::Byte);
  if (shape.N == 0) return {y, taps};
  const Tensor input = with_adjacent_channels(x);
  cpu::max_pool2d_forward({shape, dtype_of(x, "x"), input_view(input), output_view(y), output_view(taps)});
  return {y, taps};
}

// grad_x [N, C, H, W], channels-last.
Tensor max_pool2d_backward(const Tensor& grad_y, const Tensor& taps, int64_t H, int64_t W, Pair kernel, Pair stride,
                           Pair padding) {
  check_activations(grad_y, "grad_y");
  const PoolShape shape = window_of_bytes(grad_y.size(0), grad_y.size(1), H, W, kernel, stride, padding);
  STD_TORCH_CHECK(grad_y.size(2) == shape.P() && grad_y.size(3) == shape.Q(), "grad_y: expected ", shape.P(), " x ",
                  shape.Q(), " pixels for an input of ", H, " x ", W, ", got ", describe(grad_y));
  bool same = taps.is_cpu() && taps.scalar_type() == ScalarType::Byte && taps.dim() == 4;
  for (int64_t d = 0; d < 4 && same; ++d) same = taps.size(d) == grad_y.size(d);
  STD_TORCH_CHECK(same, "taps: expected uint8 of the shape of grad_y ", describe(grad_y), ", got ", describe(taps));
  Tensor grad_x = empty_activations(grad_y, shape.N, shape.C, H, W, true);
  if (shape.N == 0) return grad_x;
  const Tensor gradient = with_adjacent_channels(grad_y), winners = with_adjacent_channels(taps);
  cpu::max_pool2d_backward(
      {shape, dtype_of(grad_y, "grad_y"), input_view(gradient), input_view(winners), output_view(grad_x)});
  return grad_x;
}

STABLE_TORCH_LIBRARY_IMPL(inception_kernels, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d));
  m.impl("max_pool2d_training", TORCH_BOX(&max_pool2d_training));
  m.impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward));
}

}  // namespace ik
