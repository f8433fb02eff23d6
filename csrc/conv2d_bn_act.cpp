#include "conv2d_bn_act.h"

#include <torch/csrc/stable/library.h>

#include "common/batch_norm_ops.h"
#include "common/checks.h"

namespace ik {

namespace {

Tensor pack(const ConvShape& shape, DType dtype, const Tensor& weight) {
  Tensor packed =
      empty_cpu({static_cast<int64_t>(cpu::conv2d_packed_bytes(shape, dtype))}, torch::headeronly::ScalarType::Byte);
  cpu::conv2d_pack(shape, dtype, weight_view(weight), packed.mutable_data_ptr());
  return packed;
}

// The convolution, its scale and shift, residual and activation, into a new channels-last tensor.
Tensor forward(const ConvShape& shape, const Tensor& x, const Tensor& packed, const void* scale, const void* shift,
               const OptionalTensor& residual, Activation activation) {
  Tensor y = empty_activations(x, shape.N, shape.K, shape.P(), shape.Q(), true);
  if (shape.N == 0) return y;
  const Tensor input = with_adjacent_channels(x);
  const OptionalTensor added = residual ? OptionalTensor(with_adjacent_channels(*residual)) : std::nullopt;
  cpu::conv2d_forward({shape, dtype_of(x, "x"), input_view(input), packed.const_data_ptr(), scale, shift,
                       input_view(added), activation, output_view(y)});
  return y;
}

ConvShape checked_shape(const Tensor& x, const Tensor& weight, const Pair& stride, const Pair& padding,
                        const Pair& dilation) {
  check_activations(x, "x");
  check_weight(weight, x, x.size(1), "weight");
  return conv_shape(x, weight.size(0), weight.size(2), weight.size(3), stride, padding, dilation);
}

std::vector<int64_t> output_sizes(const ConvShape& shape) { return {shape.N, shape.K, shape.P(), shape.Q()}; }

}  // namespace

Tensor conv2d_bn_act(const Tensor& x, const Tensor& weight, const OptionalTensor& bn_weight,
                     const OptionalTensor& bn_bias, const OptionalTensor& running_mean,
                     const OptionalTensor& running_var, const OptionalTensor& bias, const OptionalTensor& residual,
                     Pair stride, Pair padding, Pair dilation, std::string activation, double eps) {
  const ConvShape shape = checked_shape(x, weight, stride, padding, dilation);
  check_like(residual, x, output_sizes(shape), "residual");
  check_batch_norm(running_mean, running_var, bn_weight, bn_bias);
  const DType dtype = dtype_of(x, "x");
  const ScaleShift bn = fold_batch_norm(dtype, shape.K, bn_weight, bn_bias, running_mean, running_var, bias, eps);
  const Tensor y = forward(shape, x, pack(shape, dtype, weight), bn.scale.data(), bn.shift.data(), residual,
                           activation_code(activation));
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
  const ChannelVector offset(dtype, channel_values(bias, shape.K, "bias"));
  const Tensor z =
      forward(shape, x, pack(shape, dtype, weight), nullptr, offset.data(), std::nullopt, Activation::kNone);
  NormalizedBatch batch = normalize_batch(z, bn_weight, bn_bias, residual, activation_code(activation), eps);
  return {in_memory_format(batch.y, suggests_channels_last(x)), z, batch.mean, batch.var};
}

// Gradients of x, weight, bn_weight, bn_bias, bias, residual; those not asked for in output_mask come back empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv2d_bn_act_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& weight, const OptionalTensor& bn_weight,
    const OptionalTensor& bn_bias, const OptionalTensor& mean, const OptionalTensor& var, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& z, Pair stride, Pair padding, Pair dilation,
    std::string activation, bool training, double eps, std::vector<bool> output_mask) {
  const ConvShape shape = checked_shape(x, weight, stride, padding, dilation);
  STD_TORCH_CHECK(output_mask.size() == 6, "output_mask: expected 6 flags, got ", output_mask.size());
  check_like(grad_y, x, output_sizes(shape), "grad_y");
  check_like(residual, x, output_sizes(shape), "residual");
  check_like(z, x, output_sizes(shape), "z");
  check_batch_norm(mean, var, bn_weight, bn_bias);
  const DType dtype = dtype_of(x, "x");
  const bool channels_last = suggests_channels_last(x);

  // Evaluation does not keep the raw convolution: it is computed again where the gradient needs it.
  const Activation code = activation_code(activation);
  const ChannelVector offset(dtype, channel_values(bias, shape.K, "bias"));
  const bool needs_z = code != Activation::kNone || output_mask[2] || training;
  const OptionalTensor raw = z || !needs_z ? z
                                           : OptionalTensor(forward(shape, x, pack(shape, dtype, weight), nullptr,
                                                                    offset.data(), std::nullopt, Activation::kNone));
  const bool needs_grad_z = output_mask[0] || output_mask[1];
  BatchNormGradients bn = batch_norm_gradients(
      {grad_y, raw, residual, bn_weight, bn_bias, mean, var, code, training, eps, needs_grad_z, output_mask[5]});

  Tensor grad_x = empty_cpu({0}, x.scalar_type()), grad_weight = empty_cpu({0}, x.scalar_type());
  const Conv2dBackward args{shape, dtype, needs_grad_z ? input_view(bn.grad_z) : NhwcInput{}};
  if (output_mask[0]) {
    grad_x = empty_activations(x, shape.N, shape.C, shape.H, shape.W, true);
    if (shape.N > 0) cpu::conv2d_backward_data(args, weight_view(weight), output_view(grad_x));
    grad_x = in_memory_format(grad_x, channels_last);
  }
  if (output_mask[1]) {
    grad_weight = empty_cpu({shape.K, shape.C, shape.R, shape.S}, x.scalar_type());
    if (shape.N > 0) {
      const Tensor input = with_adjacent_channels(x);
      cpu::conv2d_backward_weight(args, input_view(input), grad_weight.mutable_data_ptr());
    } else {
      torch::stable::zero_(grad_weight);
    }
  }
  return {grad_x,
          grad_weight,
          like_parameter(bn.grad_gamma, bn_weight, output_mask[2]),
          like_parameter(bn.grad_beta, bn_bias, output_mask[3]),
          like_parameter(bn.grad_bias, bias, output_mask[4]),
          output_mask[5] ? in_memory_format(bn.grad_residual, residual && suggests_channels_last(*residual))
                         : empty_cpu({0}, x.scalar_type())};
}

// ---- inference with weights packed and BN folded beforehand

// An opaque form of `weight` for conv2d_bn_act_prepacked; valid in this process while the ISA in force stays the same.
Tensor conv2d_bn_act_pack(const Tensor& weight, Pair stride, Pair padding, Pair dilation) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.is_cpu() && weight.numel() > 0,
                  "weight: expected a CPU tensor [K, C, R, S], got ", describe(weight));
  const ConvShape shape{
      0,         weight.size(1), 0,          0,          weight.size(0), weight.size(2), weight.size(3),
      stride[0], stride[1],      padding[0], padding[1], dilation[0],    dilation[1]};
  return pack(shape, dtype_of(weight, "weight"), weight);
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
  const DType dtype = dtype_of(x, "x");
  check_accumulation_vector(scale, shape.K, dtype, "scale");
  check_accumulation_vector(shift, shape.K, dtype, "shift");
  check_packed(packed, cpu::conv2d_packed_bytes(shape, dtype), "packed");
  return forward(shape, x, packed, scale ? scale->const_data_ptr() : nullptr, shift ? shift->const_data_ptr() : nullptr,
                 residual, activation_code(activation));
}

STABLE_TORCH_LIBRARY_IMPL(inception_kernels, CPU, m) {
  m.impl("conv2d_bn_act", TORCH_BOX(&conv2d_bn_act));
  m.impl("conv2d_bn_act_training", TORCH_BOX(&conv2d_bn_act_training));
  m.impl("conv2d_bn_act_backward", TORCH_BOX(&conv2d_bn_act_backward));
  m.impl("conv2d_bn_act_pack", TORCH_BOX(&conv2d_bn_act_pack));
  m.impl("conv2d_bn_act_prepacked", TORCH_BOX(&conv2d_bn_act_prepacked));
}

}  // namespace ik
