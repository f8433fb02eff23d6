// The pointwise weight's gradient within separable_backward.
#pragma once
#include <cstddef>

#include "common/types.h"
#include "cuda/context.h"

namespace ik::cuda {

struct PointwiseWeightGradient {
  int64_t N, P, Q, K, C;
  DType dtype;
  NhwcInput grad_z;   // [N, P, Q, K]
  const void* input;  // [N P Q][pitch], pitch a multiple of 8; 16-byte aligned
  int64_t pitch;
  void* grad_weight;  // [K][C], dtype
};

size_t pointwise_weight_workspace_bytes(const PointwiseWeightGradient& args, const Context& context);
void pointwise_weight_gradient(const PointwiseWeightGradient& args, void* workspace, const Context& context);

}  // namespace ik::cuda
