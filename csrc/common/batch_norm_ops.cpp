#include "common/batch_norm_ops.h"

#include <cmath>

namespace ik {

namespace {

Tensor channel_tensor(int64_t K, DType dtype) { return empty_cpu({K}, accumulation_type(dtype)); }

ChannelVector reciprocal_deviation(DType dtype, const OptionalTensor& var, int64_t K, double eps) {
  std::vector<double> values = channel_values(var, K, "var");
  for (double& value : values) value = 1.0 / std::sqrt(value + eps);
  return ChannelVector(dtype, values);
}

}  // namespace

NormalizedBatch normalize_batch(const Tensor& z, const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                                const OptionalTensor& residual, Activation activation, double eps) {
  const int64_t N = z.size(0), K = z.size(1), P = z.size(2), Q = z.size(3);
  const DType dtype = dtype_of(z, "z");
  NormalizedBatch batch{empty_activations(z, N, K, P, Q, true), channel_tensor(K, dtype), channel_tensor(K, dtype)};
  if (N == 0) {
    torch::stable::zero_(batch.mean);
    torch::stable::zero_(batch.var);
    return batch;
  }
  cpu::batch_statistics(N, P, Q, K, dtype, input_view(z), batch.mean.mutable_data_ptr(), batch.var.mutable_data_ptr());
  const ScaleShift bn = fold_batch_norm(dtype, K, bn_weight, bn_bias, batch.mean, batch.var, std::nullopt, eps);
  const OptionalTensor added = residual ? OptionalTensor(with_adjacent_channels(*residual)) : std::nullopt;
  cpu::scale_shift_act({N, P, Q, K, dtype, input_view(z), bn.scale.data(), bn.shift.data(), input_view(added),
                        activation, output_view(batch.y)});
  return batch;
}

BatchNormGradients batch_norm_gradients(const BatchNormGradientArgs& args) {
  const Tensor grad_y = with_adjacent_channels(args.grad_y);
  const int64_t N = grad_y.size(0), K = grad_y.size(1), P = grad_y.size(2), Q = grad_y.size(3);
  const DType dtype = dtype_of(grad_y, "grad_y");
  const Tensor nothing = empty_cpu({0}, grad_y.scalar_type());
  BatchNormGradients out{args.needs_grad_z ? empty_activations(grad_y, N, K, P, Q, true) : nothing,
                         args.needs_grad_residual ? empty_activations(grad_y, N, K, P, Q, true) : nothing,
                         channel_tensor(K, dtype), channel_tensor(K, dtype), channel_tensor(K, dtype)};
  if (N == 0) {
    for (Tensor* sum : {&out.grad_gamma, &out.grad_beta, &out.grad_bias}) torch::stable::zero_(*sum);
    return out;
  }
  const ChannelVector mean(dtype, channel_values(args.mean, K, "mean"));
  const ChannelVector rstd = reciprocal_deviation(dtype, args.var, K, args.eps);
  const ChannelVector gamma(dtype, channel_values(args.bn_weight, K, "bn_weight"));
  const ChannelVector beta(dtype, channel_values(args.bn_bias, K, "bn_bias"));
  const OptionalTensor added = args.residual ? OptionalTensor(with_adjacent_channels(*args.residual)) : std::nullopt;
  // Where z is not needed its values do not matter: grad_y stands in so that the kernel has something to read.
  const OptionalTensor z = args.z ? OptionalTensor(with_adjacent_channels(*args.z)) : OptionalTensor(grad_y);
  cpu::bn_act_backward({N, P, Q, K, dtype, input_view(grad_y), input_view(z), input_view(added), mean.data(),
                        rstd.data(), gamma.data(), beta.data(), args.training && args.mean.has_value(), args.activation,
                        args.needs_grad_z ? output_view(out.grad_z) : NhwcOutput{},
                        args.needs_grad_residual ? output_view(out.grad_residual) : NhwcOutput{},
                        out.grad_gamma.mutable_data_ptr(), out.grad_beta.mutable_data_ptr(),
                        out.grad_bias.mutable_data_ptr()});
  return out;
}

Tensor like_parameter(const Tensor& gradient, const OptionalTensor& parameter, bool wanted) {
  if (!wanted || !parameter) return empty_cpu({0}, gradient.scalar_type());
  return torch::stable::to(gradient, parameter->scalar_type());
}

}  // namespace ik
