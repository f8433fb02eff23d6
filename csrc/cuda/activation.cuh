// The five activations, with PyTorch's treatment of NaN. The choice is uniform: one branch for many values.
#pragma once
#include "common/types.h"
#include "cuda/primitives.cuh"

namespace ik::cuda {

// exp(x) - 1 for x <= 0: near zero the difference cancels, so a series takes over there.
IK_DEVICE float expm1_of_negative(float x) {
  float series = 1.0f / 5040.0f;
  series = fmaf(series, x, 1.0f / 720.0f);
  series = fmaf(series, x, 1.0f / 120.0f);
  series = fmaf(series, x, 1.0f / 24.0f);
  series = fmaf(series, x, 1.0f / 6.0f);
  series = fmaf(series, x, 0.5f);
  series = fmaf(series * x, x, x);
  constexpr float kSeriesFrom = -0.5f;
  return x > kSeriesFrom ? series : __expf(x) - 1.0f;
}

IK_DEVICE float relu(float x) { return x < 0.0f ? 0.0f : x; }
IK_DEVICE float relu6(float x) { return x < 0.0f ? 0.0f : x > 6.0f ? 6.0f : x; }
IK_DEVICE float elu(float x) { return x > 0.0f ? x : expm1_of_negative(x); }
IK_DEVICE float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

template <int kCount>
IK_DEVICE void activate(Activation activation, float (&values)[kCount]) {
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kRelu:
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = relu(values[i]);
      break;
    case Activation::kRelu6:
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = relu6(values[i]);
      break;
    case Activation::kElu:
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = elu(values[i]);
      break;
    case Activation::kSilu:
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = silu(values[i]);
      break;
  }
}

}  // namespace ik::cuda
