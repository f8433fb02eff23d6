// The pointwise weight's gradient on Hopper: sums of parts of the pixels. pointwise_weight_gradient of
// separable_conv2d_backward_weight.h chooses between this kernel and the others, and adds the parts.
#pragma once
#include "cuda/separable_conv2d_backward_weight.h"

namespace ik::cuda {

// Null where the kernel can run, else the reason: static text.
const char* pointwise_weight_sm90_unsupported(const PointwiseWeightGradient& args, const Context& context);

// A tile of K by C that there is a kernel for, and how many blocks share the pixels.
struct PointwiseWeightSm90Plan {
  int tile;
  int64_t split_pixels;
  int64_t splits;
};
PointwiseWeightSm90Plan pointwise_weight_sm90_plan(const PointwiseWeightGradient& args, const Context& context);
// partial: [splits][K][pitch].
void pointwise_weight_sm90(const PointwiseWeightGradient& args, const PointwiseWeightSm90Plan& plan, float* partial,
                           const Context& context);

int pointwise_weight_sm90_tiles();
// Of that tile, as a launch plans it.
PointwiseWeightSm90Plan pointwise_weight_sm90_plan_of(int tile, const PointwiseWeightGradient& args,
                                                      const Context& context);

}  // namespace ik::cuda
