#include "common/device.h"

#include <cmath>

#include "cpu/channel_values.h"
#include "cpu/empty.h"
#include "cpu/run_conv.h"
#include "cpu/run_separable.h"

namespace ik {

Device::Device(const Tensor&, Work) {}

const char* Device::name() { return "CPU"; }

bool Device::holds(const Tensor& tensor) { return tensor.is_cpu(); }

Tensor Device::empty(const Tensor&, const std::vector<int64_t>& sizes, torch::headeronly::ScalarType dtype,
                     torch::headeronly::MemoryFormat format) {
  return cpu::empty(sizes, dtype, format);
}

ScaleShift Device::fold_batch_norm(DType dtype, int64_t K, const OptionalTensor& bn_weight,
                                   const OptionalTensor& bn_bias, const OptionalTensor& mean, const OptionalTensor& var,
                                   const OptionalTensor& bias, double eps) const {
  std::vector<double> shift = cpu::channel_values(bias, K, "bias");
  if (!mean) return {std::nullopt, cpu::channel_tensor(shift, dtype)};
  const std::vector<double> gamma = cpu::channel_values(bn_weight, K, "bn_weight");
  const std::vector<double> beta = cpu::channel_values(bn_bias, K, "bn_bias");
  const std::vector<double> centre = cpu::channel_values(mean, K, "running_mean");
  const std::vector<double> spread = cpu::channel_values(var, K, "running_var");
  std::vector<double> scale(K);
  shift.resize(K, 0.0);
  for (int64_t k = 0; k < K; ++k) {
    scale[k] = (gamma.empty() ? 1.0 : gamma[k]) / std::sqrt(spread[k] + eps);
    shift[k] = (shift[k] - centre[k]) * scale[k] + (beta.empty() ? 0.0 : beta[k]);
  }
  return {cpu::channel_tensor(scale, dtype), cpu::channel_tensor(shift, dtype)};
}

OptionalTensor Device::reciprocal_deviation(DType dtype, int64_t K, const OptionalTensor& var, double eps) const {
  std::vector<double> values = cpu::channel_values(var, K, "var");
  for (double& value : values) value = 1.0 / std::sqrt(value + eps);
  return cpu::channel_tensor(values, dtype);
}

void Device::scale_shift_act(const ScaleShiftAct& args) const { cpu::scale_shift_act(args); }

void Device::bn_act_backward(const BnActBackward& args) const { cpu::bn_act_backward(args); }

void Device::update_running_statistics(const RunningStatistics& args) const { cpu::update_running_statistics(args); }

// ---- conv2d_bn_act

size_t Device::conv2d_packed_bytes(const ConvShape& shape, DType dtype) const {
  return cpu::conv2d_packed_bytes(shape, dtype);
}

void Device::conv2d_pack(const ConvShape& shape, DType dtype, const WeightView& weight, void* packed) const {
  cpu::conv2d_pack(shape, dtype, weight, packed);
}

void Device::conv2d_forward(const Conv2dForward& args) const { cpu::conv2d_forward(args); }

namespace {

NhwcInput as_input(const NhwcOutput& y) { return {y.data, y.stride_n, y.stride_h, y.stride_w}; }

void statistics(const ConvShape& shape, DType dtype, const NhwcOutput& z, void* mean, void* var) {
  cpu::batch_statistics(shape.N, shape.P(), shape.Q(), shape.K, dtype, as_input(z), mean, var);
}

}  // namespace

void Device::conv2d_forward_statistics(const Conv2dForward& args, const Tensor& weight, void* mean, void* var) const {
  cpu::conv2d_forward_unpacked(args, weight_view(weight));
  statistics(args.shape, args.dtype, args.y, mean, var);
}

Conv2dGradients Device::conv2d_backward(const ConvShape& shape, const Tensor& grad_z, const Tensor& x,
                                        const Tensor& weight, bool wants_x, bool wants_weight, bool batch_statistics,
                                        torch::headeronly::ScalarType weight_type) const {
  const DType dtype = dtype_of(x, "x");
  const Conv2dBackward args{shape, dtype, input_view(grad_z), batch_statistics};
  Conv2dGradients gradients;
  if (wants_x) {
    gradients.x = empty_activations(x, shape.N, shape.C, shape.H, shape.W, true);
    cpu::conv2d_backward_data(args, weight_view(weight), output_view(*gradients.x));
  }
  if (wants_weight) {
    const Tensor input = with_adjacent_channels(x);
    gradients.weight =
        empty_activations(x, shape.K, shape.C, shape.R, shape.S, suggests_channels_last(weight), weight_type);
    cpu::conv2d_backward_weight(args, input_view(input), weight_output(*gradients.weight),
                                weight_type != x.scalar_type());
  }
  return gradients;
}

// ---- separable_conv2d

size_t Device::separable_packed_depthwise_bytes(const ConvShape& shape, DType dtype) const {
  return cpu::separable_packed_depthwise_bytes(shape, dtype);
}

size_t Device::separable_packed_pointwise_bytes(const ConvShape& shape, DType dtype) const {
  return cpu::separable_packed_pointwise_bytes(shape, dtype);
}

void Device::separable_pack(const ConvShape& shape, DType dtype, const WeightView& depthwise,
                            const WeightView& pointwise, void* packed_depthwise, void* packed_pointwise) const {
  cpu::separable_pack(shape, dtype, depthwise, pointwise, packed_depthwise, packed_pointwise);
}

void Device::separable_forward(const SeparableForward& args) const { cpu::separable_forward(args); }

void Device::separable_forward_statistics(const SeparableForward& args, const WeightView& depthwise,
                                          const WeightView& pointwise, void* mean, void* var) const {
  cpu::separable_forward_unpacked(args, depthwise, pointwise);
  statistics(args.shape, args.dtype, args.y, mean, var);
}

void Device::separable_backward(const SeparableBackward& args) const { cpu::separable_backward(args); }

// ---- asymmetric_pair

void Device::asymmetric_pair_forward(const PairForward& args) const { cpu::asymmetric_pair_forward(args); }

}  // namespace ik
