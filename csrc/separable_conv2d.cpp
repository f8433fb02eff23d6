#include "separable_conv2d.h"

#include "common/batch_norm_ops.h"
#include "common/checks.h"
#include "common/device.h"
#include "operators.h"

namespace ik {

namespace {

using torch::headeronly::ScalarType;

struct Packed {
  Tensor depthwise, pointwise;
};

struct Activations {
  Activation input, mid, output;
};

Packed pack(const Device& device, const ConvShape& shape, const Tensor& depthwise, const Tensor& pointwise) {
  const DType dtype = dtype_of(depthwise, "depthwise_weight");
  const auto bytes = [&](size_t count) { return empty_on(depthwise, {static_cast<int64_t>(count)}, ScalarType::Byte); };
  Packed packed{bytes(device.separable_packed_depthwise_bytes(shape, dtype)),
                bytes(device.separable_packed_pointwise_bytes(shape, dtype))};
  device.separable_pack(shape, dtype, weight_view(depthwise), weight_view(pointwise),
                        packed.depthwise.mutable_data_ptr(), packed.pointwise.mutable_data_ptr());
  return packed;
}

SeparableForward arguments(const ConvShape& shape, const Tensor& input, const void* depthwise, const void* pointwise,
                           const OptionalTensor& depthwise_bias, const ScaleShift& bn, const OptionalTensor& added,
                           const Activations& act, const Tensor& y) {
  return {shape,
          dtype_of(input, "x"),
          input_view(input),
          depthwise,
          pointwise,
          data_or_null(depthwise_bias),
          data_or_null(bn.scale),
          data_or_null(bn.shift),
          input_view(added),
          act.input,
          act.mid,
          act.output,
          output_view(y)};
}

Tensor forward(const Device& device, const ConvShape& shape, const Tensor& x, const Packed& packed,
               const OptionalTensor& depthwise_bias, const ScaleShift& bn, const OptionalTensor& residual,
               const Activations& act) {
  Tensor y = empty_activations(x, shape.N, shape.K, shape.P(), shape.Q(), true);
  if (shape.N == 0) return y;
  const Tensor input = with_adjacent_channels(x);
  const OptionalTensor added = residual ? OptionalTensor(with_adjacent_channels(*residual)) : std::nullopt;
  device.separable_forward(arguments(shape, input, packed.depthwise.const_data_ptr(), packed.pointwise.const_data_ptr(),
                                     depthwise_bias, bn, added, act, y));
  return y;
}

void check_weights(const Tensor& depthwise, const Tensor& pointwise, int64_t C) {
  STD_TORCH_CHECK(Device::holds(depthwise) && depthwise.dim() == 4 && depthwise.size(0) == C &&
                      depthwise.size(1) == 1 && depthwise.numel() > 0,
                  "depthwise_weight: expected a ", Device::name(), " tensor [", C, ", 1, R, S], got ",
                  describe(depthwise));
  STD_TORCH_CHECK(is_beside(pointwise, depthwise) && pointwise.dim() == 4 && pointwise.size(1) == C &&
                      pointwise.size(2) == 1 && pointwise.size(3) == 1 && pointwise.numel() > 0,
                  "pointwise_weight: expected [K, ", C, ", 1, 1] on the device of depthwise_weight, a ", Device::name(),
                  " tensor, got ", describe(pointwise));
  STD_TORCH_CHECK(depthwise.scalar_type() == pointwise.scalar_type(), "expected both weights of one dtype, got ",
                  describe(depthwise), " and ", describe(pointwise));
}

ConvShape checked_shape(const Tensor& x, const Tensor& depthwise, const Tensor& pointwise, const Pair& stride,
                        const Pair& padding, const Pair& dilation) {
  check_activations(x, "x");
  check_weights(depthwise, pointwise, x.size(1));
  STD_TORCH_CHECK(depthwise.scalar_type() == x.scalar_type() && is_beside(depthwise, x),
                  "depthwise_weight: expected the dtype and the device of the input ", describe(x), ", got ",
                  describe(depthwise));
  return conv_shape(x, pointwise.size(0), depthwise.size(2), depthwise.size(3), stride, padding, dilation);
}

std::vector<int64_t> output_sizes(const ConvShape& shape) { return {shape.N, shape.K, shape.P(), shape.Q()}; }

Activations activation_codes(const std::string& input, const std::string& mid, const std::string& output) {
  return {activation_code(input), activation_code(mid), activation_code(output)};
}

}  // namespace

Tensor separable_conv2d(const Tensor& x, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                        const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                        const OptionalTensor& running_mean, const OptionalTensor& running_var,
                        const OptionalTensor& depthwise_bias, const OptionalTensor& bias,
                        const OptionalTensor& residual, Pair stride, Pair padding, Pair dilation,
                        std::string input_activation, std::string mid_activation, std::string activation, double eps) {
  const ConvShape shape = checked_shape(x, depthwise_weight, pointwise_weight, stride, padding, dilation);
  check_like(residual, x, output_sizes(shape), "residual");
  check_batch_norm(running_mean, running_var, bn_weight, bn_bias);
  const DType dtype = dtype_of(x, "x");
  const Activations act = activation_codes(input_activation, mid_activation, activation);
  const Device device(x);
  const OptionalTensor offset = channel_vector(depthwise_bias, shape.C, dtype, "depthwise_bias");
  const ScaleShift bn =
      device.fold_batch_norm(dtype, shape.K, bn_weight, bn_bias, running_mean, running_var, bias, eps);
  const Tensor y =
      forward(device, shape, x, pack(device, shape, depthwise_weight, pointwise_weight), offset, bn, residual, act);
  return in_memory_format(y, suggests_channels_last(x));
}

// y, the raw pointwise output z (kept for the gradient), and the batch mean and biased variance.
std::tuple<Tensor, Tensor, Tensor, Tensor> separable_conv2d_training(
    const Tensor& x, const Tensor& depthwise_weight, const Tensor& pointwise_weight, const OptionalTensor& bn_weight,
    const OptionalTensor& bn_bias, const OptionalTensor& depthwise_bias, const OptionalTensor& bias,
    const OptionalTensor& residual, Pair stride, Pair padding, Pair dilation, std::string input_activation,
    std::string mid_activation, std::string activation, double eps) {
  const ConvShape shape = checked_shape(x, depthwise_weight, pointwise_weight, stride, padding, dilation);
  check_like(residual, x, output_sizes(shape), "residual");
  const DType dtype = dtype_of(x, "x");
  const Activations act = activation_codes(input_activation, mid_activation, activation);
  const Device device(x);
  const Tensor z = empty_activations(x, shape.N, shape.K, shape.P(), shape.Q(), true);
  Tensor mean = empty_on(x, {shape.K}, accumulation_type(dtype)),
         var = empty_on(x, {shape.K}, accumulation_type(dtype));
  if (shape.N > 0) {
    const Tensor input = with_adjacent_channels(x);
    const OptionalTensor depthwise_offset = channel_vector(depthwise_bias, shape.C, dtype, "depthwise_bias");
    const ScaleShift offset{std::nullopt, channel_vector(bias, shape.K, dtype, "bias")};
    device.separable_forward_statistics(arguments(shape, input, nullptr, nullptr, depthwise_offset, offset,
                                                  std::nullopt, {act.input, act.mid, Activation::kNone}, z),
                                        weight_view(depthwise_weight), weight_view(pointwise_weight),
                                        mean.mutable_data_ptr(), var.mutable_data_ptr());
  } else {
    for (Tensor* statistic : {&mean, &var}) torch::stable::zero_(*statistic);
  }
  const Tensor y = normalize(device, z, mean, var, bn_weight, bn_bias, residual, act.output, eps);
  return {in_memory_format(y, suggests_channels_last(x)), z, mean, var};
}

// Gradients of x, depthwise_weight, pointwise_weight, bn_weight, bn_bias, depthwise_bias, bias, residual; those not
// asked for in output_mask come back empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> separable_conv2d_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& depthwise_weight, const Tensor& pointwise_weight,
    const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const OptionalTensor& mean,
    const OptionalTensor& var, const OptionalTensor& depthwise_bias, const OptionalTensor& bias,
    const OptionalTensor& residual, const OptionalTensor& z, Pair stride, Pair padding, Pair dilation,
    std::string input_activation, std::string mid_activation, std::string activation, bool training, double eps,
    std::vector<bool> output_mask, bool float32_weights) {
  const ConvShape shape = checked_shape(x, depthwise_weight, pointwise_weight, stride, padding, dilation);
  const ScalarType weight_type = weight_gradient_type(x, float32_weights);
  STD_TORCH_CHECK(output_mask.size() == 8, "output_mask: expected 8 flags, got ", output_mask.size());
  check_like(grad_y, x, output_sizes(shape), "grad_y");
  check_like(residual, x, output_sizes(shape), "residual");
  check_like(z, x, output_sizes(shape), "z");
  check_batch_norm(mean, var, bn_weight, bn_bias);
  const DType dtype = dtype_of(x, "x");
  const Activations act = activation_codes(input_activation, mid_activation, activation);
  const Device device(x);
  const OptionalTensor depthwise_offset = channel_vector(depthwise_bias, shape.C, dtype, "depthwise_bias");

  // Where the forward pass kept no raw output, it is computed again if the gradient needs it.
  const auto raw_output = [&] {
    const ScaleShift offset{std::nullopt, channel_vector(bias, shape.K, dtype, "bias")};
    return forward(device, shape, x, pack(device, shape, depthwise_weight, pointwise_weight), depthwise_offset, offset,
                   std::nullopt, {act.input, act.mid, Activation::kNone});
  };
  const bool needs_z = act.output != Activation::kNone || output_mask[3] || training;
  const OptionalTensor raw = z || !needs_z ? z : OptionalTensor(raw_output());
  const bool needs_grad_z = output_mask[0] || output_mask[1] || output_mask[2] || output_mask[5];
  BatchNormGradients bn = batch_norm_gradients(
      device, {grad_y, raw, residual, bn_weight, bn_bias, mean, var, act.output, training, eps, needs_grad_z,
               output_mask[7], output_mask[3] && bn_weight, output_mask[4] && bn_bias, output_mask[6] && bias});

  const auto unless_masked = [&](bool wanted, std::vector<int64_t> sizes, ScalarType type) {
    return empty_on(x, wanted ? sizes : std::vector<int64_t>{0}, type);
  };
  Tensor grad_x = output_mask[0] ? empty_activations(x, shape.N, shape.C, shape.H, shape.W, true)
                                 : empty_on(x, {0}, x.scalar_type());
  Tensor grad_depthwise = unless_masked(output_mask[1], {shape.C, 1, shape.R, shape.S}, weight_type);
  Tensor grad_pointwise = unless_masked(output_mask[2], {shape.K, shape.C, 1, 1}, weight_type);
  Tensor grad_depthwise_bias = unless_masked(output_mask[5] && depthwise_bias, {shape.C}, accumulation_type(dtype));
  if (shape.N == 0) {
    for (Tensor* gradient : {&grad_depthwise, &grad_pointwise, &grad_depthwise_bias}) torch::stable::zero_(*gradient);
  } else if (needs_grad_z) {
    const Tensor input = with_adjacent_channels(x);
    const auto wanted = [](bool flag, const Tensor& tensor) { return flag ? tensor.mutable_data_ptr() : nullptr; };
    device.separable_backward({shape, dtype, input_view(bn.grad_z), input_view(input), weight_view(depthwise_weight),
                               weight_view(pointwise_weight), data_or_null(depthwise_offset), act.input, act.mid,
                               output_mask[0] ? output_view(grad_x) : NhwcOutput{},
                               wanted(output_mask[1], grad_depthwise), wanted(output_mask[2], grad_pointwise),
                               wanted(output_mask[5] && depthwise_bias, grad_depthwise_bias),
                               weight_type != x.scalar_type()});
  }
  if (output_mask[0]) grad_x = in_memory_format(grad_x, suggests_channels_last(x));
  return {grad_x,
          grad_depthwise,
          grad_pointwise,
          like_parameter(bn.grad_gamma, bn_weight),
          like_parameter(bn.grad_beta, bn_bias),
          like_parameter(grad_depthwise_bias, depthwise_bias),
          like_parameter(bn.grad_bias, bias),
          output_mask[7] ? in_memory_format(bn.grad_residual, residual && suggests_channels_last(*residual))
                         : bn.grad_residual};
}

// ---- inference with weights packed and BN folded beforehand

// Opaque forms of both weights for separable_conv2d_prepacked; valid while the ISA in force stays the same.
std::tuple<Tensor, Tensor> separable_conv2d_pack(const Tensor& depthwise_weight, const Tensor& pointwise_weight,
                                                 Pair stride, Pair padding, Pair dilation) {
  check_weights(depthwise_weight, pointwise_weight, depthwise_weight.size(0));
  const ConvShape shape{0,
                        depthwise_weight.size(0),
                        0,
                        0,
                        pointwise_weight.size(0),
                        depthwise_weight.size(2),
                        depthwise_weight.size(3),
                        stride[0],
                        stride[1],
                        padding[0],
                        padding[1],
                        dilation[0],
                        dilation[1]};
  Packed packed = pack(Device(depthwise_weight), shape, depthwise_weight, pointwise_weight);
  return {packed.depthwise, packed.pointwise};
}

// window is [K, C, R, S]; the vectors are in the accumulation type; the output is channels-last.
Tensor separable_conv2d_prepacked(const Tensor& x, const Tensor& packed_depthwise, const Tensor& packed_pointwise,
                                  const OptionalTensor& depthwise_bias, const OptionalTensor& scale,
                                  const OptionalTensor& shift, const OptionalTensor& residual,
                                  std::vector<int64_t> window, Pair stride, Pair padding, Pair dilation,
                                  std::string input_activation, std::string mid_activation, std::string activation) {
  check_activations(x, "x");
  STD_TORCH_CHECK(window.size() == 4 && window[1] == x.size(1), "x: expected ", window.at(1), " channels, got ",
                  describe(x));
  const ConvShape shape = conv_shape(x, window[0], window[2], window[3], stride, padding, dilation);
  check_like(residual, x, output_sizes(shape), "residual");
  const DType dtype = dtype_of(x, "x");
  check_accumulation_vector(depthwise_bias, x, shape.C, "depthwise_bias");
  check_accumulation_vector(scale, x, shape.K, "scale");
  check_accumulation_vector(shift, x, shape.K, "shift");
  const Activations act = activation_codes(input_activation, mid_activation, activation);
  const Device device(x);
  check_packed(packed_depthwise, x, device.separable_packed_depthwise_bytes(shape, dtype), "packed_depthwise");
  check_packed(packed_pointwise, x, device.separable_packed_pointwise_bytes(shape, dtype), "packed_pointwise");
  return forward(device, shape, x, {packed_depthwise, packed_pointwise}, depthwise_bias, {scale, shift}, residual, act);
}

void register_separable_conv2d(Library& m) {
  m.impl("separable_conv2d", TORCH_BOX(&separable_conv2d));
  m.impl("separable_conv2d_training", TORCH_BOX(&separable_conv2d_training));
  m.impl("separable_conv2d_backward", TORCH_BOX(&separable_conv2d_backward));
  m.impl("separable_conv2d_pack", TORCH_BOX(&separable_conv2d_pack));
  m.impl("separable_conv2d_prepacked", TORCH_BOX(&separable_conv2d_prepacked));
}

}  // namespace ik
