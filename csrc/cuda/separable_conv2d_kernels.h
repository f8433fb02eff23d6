// The separable kernels that separable_conv2d.cu chooses from.
#pragma once
#include "cuda/context.h"
#include "separable_conv2d.h"

namespace ik::cuda::separable {

// Runs of output pixels in the statistics of tiles_forward; 0 where the shape is empty.
int64_t statistics_runs(const SeparableForward& args, const Context& context);
// partial: [runs][2][K], mean and sum of squared deviations of y, and counts: [runs], the pixels of each run; or null.
void tiles_forward(const SeparableForward& args, float* partial, float* counts, const Context& context);

}  // namespace ik::cuda::separable
