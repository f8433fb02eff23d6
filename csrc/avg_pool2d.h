// Average pooling.
#pragma once
#include "common/pool_shape.h"
#include "common/types.h"

namespace ik::cpu {

// Of the pixels inside of the image; the divisor counts the padding, too, where count_include_pad.
void avg_pool2d(const PoolShape& shape, DType dtype, const NhwcInput& x, const NhwcOutput& y, bool count_include_pad);

}  // namespace ik::cpu
