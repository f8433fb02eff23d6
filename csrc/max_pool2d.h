// Max pooling. In training steps which pixel of its window won is kept as one byte, and the gradient is gathered.
#pragma once
#include <cstdint>

#include "common/pool_shape.h"
#include "common/types.h"

namespace ik {

// Padding never wins, the first of equal pixels does, and so does the last NaN: as in PyTorch.
struct MaxPoolForward {
  PoolShape shape;  // R * S <= 256
  DType dtype;
  NhwcInput x;      // [N, H, W, C]
  NhwcOutput y;     // [N, P, Q, C]
  NhwcOutput taps;  // [N, P, Q, C] uint8: r * S + s of the pixel that won
};

struct MaxPoolBackward {
  PoolShape shape;
  DType dtype;
  NhwcInput grad_y;   // [N, P, Q, C]
  NhwcInput taps;     // [N, P, Q, C] uint8
  NhwcOutput grad_x;  // [N, H, W, C]
};

namespace cpu {

// The maximum alone; NaN where a window has one.
void max_pool2d(const PoolShape& shape, DType dtype, const NhwcInput& x, const NhwcOutput& y);
void max_pool2d_forward(const MaxPoolForward& args);
void max_pool2d_backward(const MaxPoolBackward& args);

}  // namespace cpu
}  // namespace ik
