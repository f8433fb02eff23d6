// The derivatives of the activations at u, with PyTorch's conventions: relu'(0) = 0, relu6' = 0 at 0 and 6. At NaN
// relu' is 1, relu6' is 0, and those of elu and silu are NaN.
#pragma once
#include "cuda/activation.cuh"

namespace ik::cuda {

IK_DEVICE float silu_slope(float u) {
  const float sigmoid = 1.0f / (1.0f + expf(-u));
  return sigmoid * (1.0f + u * (1.0f - sigmoid));
}

// gradient *= activation'(u)
template <int kCount>
IK_DEVICE void multiply_by_slope(Activation activation, const float (&u)[kCount], float (&gradient)[kCount]) {
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kRelu:
#pragma unroll
      for (int i = 0; i < kCount; ++i) gradient[i] = u[i] <= 0.0f ? 0.0f : gradient[i];
      break;
    case Activation::kRelu6:
#pragma unroll
      for (int i = 0; i < kCount; ++i) gradient[i] = u[i] > 0.0f && u[i] < 6.0f ? gradient[i] : 0.0f;
      break;
    case Activation::kElu:
#pragma unroll
      for (int i = 0; i < kCount; ++i) gradient[i] *= u[i] > 0.0f ? 1.0f : expf(u[i]);
      break;
    case Activation::kSilu:
#pragma unroll
      for (int i = 0; i < kCount; ++i) gradient[i] *= silu_slope(u[i]);
      break;
  }
}

}  // namespace ik::cuda
