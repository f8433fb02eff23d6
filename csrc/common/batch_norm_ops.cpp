#include "common/batch_norm_ops.h"

namespace ik {

Tensor normalize(const Device& device, const Tensor& z, const Tensor& mean, const Tensor& var,
                 const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const OptionalTensor& residual,
                 Activation activation, double eps) {
  const int64_t N = z.size(0), K = z.size(1), P = z.size(2), Q = z.size(3);
  const DType dtype = dtype_of(z, "z");
  Tensor y = empty_activations(z, N, K, P, Q, true);
  if (N == 0) return y;
  const ScaleShift bn = device.fold_batch_norm(dtype, K, bn_weight, bn_bias, mean, var, std::nullopt, eps);
  const OptionalTensor added = residual ? OptionalTensor(with_adjacent_channels(*residual)) : std::nullopt;
  device.scale_shift_act({N, P, Q, K, dtype, input_view(z), data_or_null(bn.scale), data_or_null(bn.shift),
                          input_view(added), activation, output_view(y)});
  return y;
}

BatchNormGradients batch_norm_gradients(const Device& device, const BatchNormGradientArgs& args) {
  const Tensor grad_y = with_adjacent_channels(args.grad_y);
  const int64_t N = grad_y.size(0), K = grad_y.size(1), P = grad_y.size(2), Q = grad_y.size(3);
  const DType dtype = dtype_of(grad_y, "grad_y");
  const auto activations = [&](bool wanted) {
    return wanted ? empty_activations(grad_y, N, K, P, Q, true) : empty_on(grad_y, {0}, grad_y.scalar_type());
  };
  const auto per_channel = [&](bool wanted) { return empty_on(grad_y, {wanted ? K : 0}, accumulation_type(dtype)); };
  BatchNormGradients out{activations(args.needs_grad_z), activations(args.needs_grad_residual),
                         per_channel(args.needs_grad_gamma), per_channel(args.needs_grad_beta),
                         per_channel(args.needs_grad_bias)};
  if (N == 0) {
    for (Tensor* sum : {&out.grad_gamma, &out.grad_beta, &out.grad_bias}) torch::stable::zero_(*sum);
    return out;
  }
  const OptionalTensor mean = channel_vector(args.mean, K, dtype, "mean");
  const OptionalTensor rstd = device.reciprocal_deviation(dtype, K, args.var, args.eps);
  const OptionalTensor gamma = channel_vector(args.bn_weight, K, dtype, "bn_weight");
  const OptionalTensor beta = channel_vector(args.bn_bias, K, dtype, "bn_bias");
  const OptionalTensor added = args.residual ? OptionalTensor(with_adjacent_channels(*args.residual)) : std::nullopt;
  // Where z is not needed its values do not matter: grad_y stands in so that the kernel has something to read.
  const OptionalTensor z = args.z ? OptionalTensor(with_adjacent_channels(*args.z)) : OptionalTensor(grad_y);
  const auto wanted = [](bool flag, const Tensor& tensor) { return flag ? tensor.mutable_data_ptr() : nullptr; };
  device.bn_act_backward({N, P, Q, K, dtype, input_view(grad_y), input_view(z), input_view(added), data_or_null(mean),
                          data_or_null(rstd), data_or_null(gamma), data_or_null(beta),
                          args.training && args.mean.has_value(), args.activation,
                          args.needs_grad_z ? output_view(out.grad_z) : NhwcOutput{},
                          args.needs_grad_residual ? output_view(out.grad_residual) : NhwcOutput{},
                          wanted(args.needs_grad_gamma, out.grad_gamma), wanted(args.needs_grad_beta, out.grad_beta),
                          wanted(args.needs_grad_bias, out.grad_bias)});
  return out;
}

Tensor like_parameter(const Tensor& gradient, const OptionalTensor& parameter) {
  if (gradient.numel() == 0 || !parameter || parameter->scalar_type() == gradient.scalar_type()) return gradient;
  return torch::stable::to(gradient, parameter->scalar_type());
}

}  // namespace ik
