// Max pooling of training steps: which pixel of its window won is kept as one byte, and the gradient is gathered.
#pragma once
#include <cstdint>

#include "common/types.h"

namespace ik {

struct PoolShape {
  int64_t N, C, H, W;
  int64_t R, S;  // R * S <= 256
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;  // at most half of the window: every window has a pixel

  int64_t P() const { return (H + 2 * pad_h - R) / stride_h + 1; }
  int64_t Q() const { return (W + 2 * pad_w - S) / stride_w + 1; }
};

// Padding never wins, the first of equal pixels does, and so does the last NaN: as in PyTorch.
struct MaxPoolForward {
  PoolShape shape;
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

void max_pool2d_forward(const MaxPoolForward& args);
void max_pool2d_backward(const MaxPoolBackward& args);

}  // namespace cpu
}  // namespace ik
