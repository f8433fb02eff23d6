// The batch-norm halves that the operators share: normalisation with batch statistics, and the gradient of BN +
// activation.
#pragma once
#include "common/device.h"
#include "common/tensors.h"

namespace ik {

// act(BN(z) + residual), channels-last, with the batch's mean and biased variance [K] in the accumulation type.
Tensor normalize(const Device& device, const Tensor& z, const Tensor& mean, const Tensor& var,
                 const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const OptionalTensor& residual,
                 Activation activation, double eps);

struct BatchNormGradientArgs {
  const Tensor& grad_y;
  const OptionalTensor& z;  // may be missing where neither the activation nor bn_weight's gradient needs it
  const OptionalTensor& residual;
  const OptionalTensor& bn_weight;
  const OptionalTensor& bn_bias;
  const OptionalTensor& mean;  // missing = no BN
  const OptionalTensor& var;
  Activation activation;
  bool training;
  double eps;
  bool needs_grad_z, needs_grad_residual;
  bool needs_grad_gamma, needs_grad_beta, needs_grad_bias;
};
struct BatchNormGradients {                 // empty where not needed
  Tensor grad_z, grad_residual;             // channels-last
  Tensor grad_gamma, grad_beta, grad_bias;  // [K], accumulation type
};
BatchNormGradients batch_norm_gradients(const Device& device, const BatchNormGradientArgs& args);

// The gradient in its parameter's dtype.
Tensor like_parameter(const Tensor& gradient, const OptionalTensor& parameter);

}  // namespace ik
