// The sm_80 kernels that separable_conv2d.cu chooses from.
#pragma once
#include "cuda/context.h"
#include "separable_conv2d.h"

namespace ik::cuda::separable {

// ---- any shape

// Runs of output pixels in the statistics of tiles_forward.
int64_t statistics_runs(const SeparableForward& args, const Context& context);
// partial: [runs][2][K], mean and sum of squared deviations of y, and counts: [runs], the pixels of each run; or null.
void tiles_forward(const SeparableForward& args, float* partial, float* counts, const Context& context);

// ---- few channels and large images: bound by memory

// 16-bit, 3 x 3, stride 1, no dilation, up to 128 channels in and 256 out in aligned octets, input activation none or
// ReLU, and room in shared memory.
bool rows_can_run(const SeparableForward& args, const Context& context);
// Whether the images are large enough, where it can run.
bool rows_pay(const SeparableForward& args, const Context& context);
void rows_forward(const SeparableForward& args, const Context& context);

}  // namespace ik::cuda::separable
