#include "conv2d_bn_act.h"

#include "common/batch_norm_ops.h"
#include "common/checks.h"
#include "common/device.h"
#include "operators.h"

namespace ik {

using torch::headeronly::ScalarType;

namespace {

Tensor pack(const Device& device, const ConvShape& shape, const Tensor& weight) {
  const DType dtype = dtype_of(weight, "weight");
  const auto bytes = static_cast<int64_t>(device.conv2d_packed_bytes(shape, dtype));
  Tensor packed = empty_on(weight, {bytes}, ScalarType::Byte);
  device.conv2d_pack(shape, dtype, weight_view(weight), packed.mutable_data_ptr());
  return packed;
}

Conv2dForward arguments(const ConvShape& shape, const Tensor& input, const void* packed, const ScaleShift& bn,
                        const OptionalTensor& added, Activation activation, const Tensor& y) {
  return {shape,
          dtype_of(input, "x"),
          input_view(input),
          packed,
          data_or_null(bn.scale),
          data_or_null(bn.shift),
          input_view(added),
          activation,
          output_view(y)};
}

// The convolution, its scale and shift, residual and activation, into a new channels-last tensor.
Tensor forward(const Device& device, const ConvShape& shape, const Tensor& x, const Tensor& packed,
               const ScaleShift& bn, const OptionalTensor& residual, Activation activation) {
  Tensor y = empty_activations(x, shape.N, shape.K, shape.P(), shape.Q(), true);
  if (shape.N == 0) return y;
  const Tensor input = with_adjacent_channels(x);
  const OptionalTensor added = residual ? OptionalTensor(with_adjacent_channels(*residual)) : std::nullopt;
  device.conv2d_forward(arguments(shape, input, packed.const_data_ptr(), bn, added, activation, y));
  return y;
}

// conv(x) + bias, as the gradient needs it.
Tensor raw_convolution(const Device& device, const ConvShape& shape, const Tensor& x, const Tensor& weight,
                       const OptionalTensor& bias) {
  const ScaleShift offset{std::nullopt, channel_vector(bias, shape.K, dtype_of(x, "x"), "bias")};
  return forward(device, shape, x, pack(device, shape, weight), offset, std::nullopt, Activation::kNone);
}

ConvShape checked_shape(const Tensor& x, const Tensor& weight, const Pair& stride, const Pair& padding,
                        const Pair& dilation) {
  check_activations(x, "x");
  check_weight(weight, x, x.size(1), "weight");
  return conv_shape(x, weight.size(0), weight.size(2), weight.size(3), stride, padding, dilation);
}

std::vector<int64_t> output_sizes(const ConvShape& shape) { return {shape.N, shape.K, shape.P(), shape.Q()}; }

// Gradients of x and weight in the formats that the caller expects; those not wanted are empty.
std::tuple<Tensor, Tensor> convolution_gradients(const Device& device, const ConvShape& shape, const Tensor& grad_z,
                                                 const Tensor& x, const Tensor& weight, bool wants_x, bool wants_weight,
                                                 bool batch_statistics, ScalarType weight_type) {
  Conv2dGradients gradients;
  if (shape.N > 0 && (wants_x || wants_weight)) {
    gradients = device.conv2d_backward(shape, grad_z, x, weight, wants_x, wants_weight, batch_statistics, weight_type);
  }
  if (shape.N == 0 && wants_x) gradients.x = empty_activations(x, 0, shape.C, shape.H, shape.W, true);
  if (shape.N == 0 && wants_weight) {
    gradients.weight =
        empty_activations(x, shape.K, shape.C, shape.R, shape.S, suggests_channels_last(weight), weight_type);
    torch::stable::zero_(*gradients.weight);
  }
  const auto nothing = [&] { return empty_on(x, {0}, x.scalar_type()); };
  return {gradients.x ? in_memory_format(*gradients.x, suggests_channels_last(x)) : nothing(),
          gradients.weight ? *gradients.weight : nothing()};
}

}  // namespace

Tensor conv2d_bn_act(const Tensor& x, const Tensor& weight, const OptionalTensor& bn_weight,
                     const OptionalTensor& bn_bias, const OptionalTensor& running_mean,
                     const OptionalTensor& running_var, const OptionalTensor& bias, const OptionalTensor& residual,
                     Pair stride, Pair padding, Pair dilation, std::string activation, double eps) {
  const ConvShape shape = checked_shape(x, weight, stride, padding, dilation);
  check_like(residual, x, output_sizes(shape), "residual");
  check_batch_norm(running_mean, running_var, bn_weight, bn_bias);
  const Activation code = activation_code(activation);
  const Device device(x);
  const ScaleShift bn =
      device.fold_batch_norm(dtype_of(x, "x"), shape.K, bn_weight, bn_bias, running_mean, running_var, bias, eps);
  const Tensor y = forward(device, shape, x, pack(device, shape, weight), bn, residual, code);
  return in_memory_format(y, suggests_channels_last(x));
}

// y, the raw convolution z (kept for the gradient), and the batch mean and biased variance in the accumulation type.
std::tuple<Tensor, Tensor, Tensor, Tensor> conv2d_bn_act_training(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
    const OptionalTensor& bias, const OptionalTensor& residual, Pair stride, Pair padding, Pair dilation,
    std::string activation, double eps) {
  const ConvShape shape = checked_shape(x, weight, stride, padding, dilation);
  check_like(residual, x, output_sizes(shape), "residual");
  const DType dtype = dtype_of(x, "x");
  const Activation code = activation_code(activation);
  const Device device(x);
  const Tensor z = empty_activations(x, shape.N, shape.K, shape.P(), shape.Q(), true);
  Tensor mean = empty_on(x, {shape.K}, accumulation_type(dtype)),
         var = empty_on(x, {shape.K}, accumulation_type(dtype));
  if (shape.N > 0) {
    const Tensor input = with_adjacent_channels(x);
    const ScaleShift offset{std::nullopt, channel_vector(bias, shape.K, dtype, "bias")};
    device.conv2d_forward_statistics(arguments(shape, input, nullptr, offset, std::nullopt, Activation::kNone, z),
                                     weight, mean.mutable_data_ptr(), var.mutable_data_ptr());
  } else {
    for (Tensor* statistic : {&mean, &var}) torch::stable::zero_(*statistic);
  }
  const Tensor y = normalize(device, z, mean, var, bn_weight, bn_bias, residual, code, eps);
  return {in_memory_format(y, suggests_channels_last(x)), z, mean, var};
}

// Gradients of x, weight, bn_weight, bn_bias, bias, residual; those not asked for in output_mask come back empty. With
// float32_weights the weight's is not rounded to 16 bits.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv2d_bn_act_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& weight, const OptionalTensor& bn_weight,
    const OptionalTensor& bn_bias, const OptionalTensor& mean, const OptionalTensor& var, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& z, Pair stride, Pair padding, Pair dilation,
    std::string activation, bool training, double eps, std::vector<bool> output_mask, bool float32_weights) {
  const ConvShape shape = checked_shape(x, weight, stride, padding, dilation);
  const ScalarType weight_type = weight_gradient_type(x, float32_weights);
  STD_TORCH_CHECK(output_mask.size() == 6, "output_mask: expected 6 flags, got ", output_mask.size());
  check_like(grad_y, x, output_sizes(shape), "grad_y");
  check_like(residual, x, output_sizes(shape), "residual");
  check_like(z, x, output_sizes(shape), "z");
  check_batch_norm(mean, var, bn_weight, bn_bias);
  const Activation code = activation_code(activation);
  const Device device(x);

  // Where the forward pass kept no raw convolution, it is computed again if the gradient needs it.
  const bool needs_z = code != Activation::kNone || output_mask[2] || training;
  const OptionalTensor raw = z || !needs_z ? z : OptionalTensor(raw_convolution(device, shape, x, weight, bias));
  const bool needs_grad_z = output_mask[0] || output_mask[1];
  BatchNormGradients bn = batch_norm_gradients(
      device, {grad_y, raw, residual, bn_weight, bn_bias, mean, var, code, training, eps, needs_grad_z, output_mask[5],
               output_mask[2] && bn_weight, output_mask[3] && bn_bias, output_mask[4] && bias});
  auto [grad_x, grad_weight] =
      convolution_gradients(device, shape, bn.grad_z, x, weight, output_mask[0], output_mask[1], training, weight_type);
  return {grad_x,
          grad_weight,
          like_parameter(bn.grad_gamma, bn_weight),
          like_parameter(bn.grad_beta, bn_bias),
          like_parameter(bn.grad_bias, bias),
          output_mask[5] ? in_memory_format(bn.grad_residual, residual && suggests_channels_last(*residual))
                         : bn.grad_residual};
}

// ---- inference with weights packed and BN folded beforehand

// An opaque form of `weight` for conv2d_bn_act_prepacked; valid in this process while the ISA in force stays the same.
Tensor conv2d_bn_act_pack(const Tensor& weight, Pair stride, Pair padding, Pair dilation) {
  STD_TORCH_CHECK(weight.dim() == 4 && Device::holds(weight) && weight.numel() > 0, "weight: expected a ",
                  Device::name(), " tensor [K, C, R, S], got ", describe(weight));
  const ConvShape shape{
      0,         weight.size(1), 0,          0,          weight.size(0), weight.size(2), weight.size(3),
      stride[0], stride[1],      padding[0], padding[1], dilation[0],    dilation[1]};
  return pack(Device(weight), shape, weight);
}

// weight_shape is [K, C, R, S]; scale and shift are [K] in the accumulation type; the output is channels-last.
Tensor conv2d_bn_act_prepacked(const Tensor& x, const Tensor& packed, const OptionalTensor& scale,
                               const OptionalTensor& shift, const OptionalTensor& residual,
                               std::vector<int64_t> weight_shape, Pair stride, Pair padding, Pair dilation,
                               std::string activation) {
  check_activations(x, "x");
  STD_TORCH_CHECK(weight_shape.size() == 4 && weight_shape[1] == x.size(1), "x: expected ", weight_shape.at(1),
                  " channels, got ", describe(x));
  const ConvShape shape = conv_shape(x, weight_shape[0], weight_shape[2], weight_shape[3], stride, padding, dilation);
  check_like(residual, x, output_sizes(shape), "residual");
  check_accumulation_vector(scale, x, shape.K, "scale");
  check_accumulation_vector(shift, x, shape.K, "shift");
  const Activation code = activation_code(activation);
  const Device device(x);
  check_packed(packed, x, device.conv2d_packed_bytes(shape, dtype_of(x, "x")), "packed");
  return forward(device, shape, x, packed, {scale, shift}, residual, code);
}

void register_conv2d_bn_act(Library& m) {
  m.impl("conv2d_bn_act", TORCH_BOX(&conv2d_bn_act));
  m.impl("conv2d_bn_act_training", TORCH_BOX(&conv2d_bn_act_training));
  m.impl("conv2d_bn_act_backward", TORCH_BOX(&conv2d_bn_act_backward));
  m.impl("conv2d_bn_act_pack", TORCH_BOX(&conv2d_bn_act_pack));
  m.impl("conv2d_bn_act_prepacked", TORCH_BOX(&conv2d_bn_act_prepacked));
}

}  // namespace ik
