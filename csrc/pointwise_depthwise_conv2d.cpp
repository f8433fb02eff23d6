#include "pointwise_depthwise_conv2d.h"

#include <torch/csrc/stable/library.h>

#include "common/checks.h"
#include "common/device.h"
#include "conv2d_bn_act.h"

namespace ik {

// Evaluation and without a gradient: everything else is two operators.
Tensor pointwise_depthwise_conv2d(const Tensor& x, const Tensor& pointwise_weight, const Tensor& depthwise_weight,
                                  const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                                  const OptionalTensor& running_mean, const OptionalTensor& running_var, Pair stride,
                                  Pair padding, Pair dilation, std::string mid_activation, std::string activation,
                                  double eps) {
  check_activations(x, "x");
  check_weight(pointwise_weight, x, x.size(1), "pointwise_weight");
  check_weight(depthwise_weight, x, 1, "depthwise_weight");
  const int64_t K = pointwise_weight.size(0);
  STD_TORCH_CHECK(pointwise_weight.size(2) == 1 && pointwise_weight.size(3) == 1,
                  "pointwise_weight: expected a window of 1 x 1, got ", describe(pointwise_weight));
  STD_TORCH_CHECK(depthwise_weight.size(0) == K, "depthwise_weight: expected ", K, " channels, got ",
                  describe(depthwise_weight));
  check_batch_norm(running_mean, running_var, bn_weight, bn_bias);
  const ConvShape first = conv_shape(x, K, 1, 1, {1, 1}, {0, 0}, {1, 1});
  // The intermediate has the sizes of x; it never exists as a tensor.
  ConvShape second = conv_shape(x, K, depthwise_weight.size(2), depthwise_weight.size(3), stride, padding, dilation);
  second.C = K;
  const DType dtype = dtype_of(x, "x");
  const ScaleShift bn =
      Device(x).fold_batch_norm(dtype, K, bn_weight, bn_bias, running_mean, running_var, std::nullopt, eps);
  const Activation mid = activation_code(mid_activation), last = activation_code(activation);

  Tensor y = empty_activations(x, second.N, K, second.P(), second.Q(), true);
  if (first.N > 0) {
    using torch::headeronly::ScalarType;
    const Tensor input = with_adjacent_channels(x);
    Tensor dense = empty_cpu({static_cast<int64_t>(cpu::conv2d_packed_bytes(first, dtype))}, ScalarType::Byte);
    Tensor window = empty_cpu({static_cast<int64_t>(cpu::depthwise_window_bytes(second, dtype))}, ScalarType::Byte);
    cpu::conv2d_pack(first, dtype, weight_view(pointwise_weight), dense.mutable_data_ptr());
    cpu::depthwise_window_pack(second, dtype, weight_view(depthwise_weight), window.mutable_data_ptr());
    cpu::pointwise_depthwise_forward({first, second, dtype, input_view(input), dense.const_data_ptr(),
                                      window.const_data_ptr(), mid, data_or_null(bn.scale), data_or_null(bn.shift),
                                      last, output_view(y)});
  }
  return in_memory_format(y, suggests_channels_last(x));
}

STABLE_TORCH_LIBRARY_IMPL(inception_kernels, CPU, m) {
  m.impl("pointwise_depthwise_conv2d", TORCH_BOX(&pointwise_depthwise_conv2d));
}

}  // namespace ik
