// The separable convolution as training needs it.
#pragma once
#include "separable_conv2d.h"

namespace ik::cpu {

// separable_forward with weights that are not packed; those of args are not read.
void separable_forward_unpacked(const SeparableForward& args, const WeightView& depthwise, const WeightView& pointwise);

}  // namespace ik::cpu
