// Gradients of a dense convolution: PyTorch's own, which means cuDNN's.
#pragma once
#include "common/device.h"

namespace ik::cuda {

Conv2dGradients convolution_backward(const ConvShape& shape, const Tensor& grad_z, const Tensor& x,
                                     const Tensor& weight, bool wants_x, bool wants_weight);

}  // namespace ik::cuda
