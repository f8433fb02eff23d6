// conv2d_bn_act: dense convolution -> scale, shift (folded BN and bias) -> + residual -> activation.
#pragma once
#include <cstddef>

#include "common/types.h"

namespace ik {

struct Conv2dForward {
  ConvShape shape;
  DType dtype;
  NhwcInput x;                // [N, H, W, C]
  const void* packed_weight;  // written by cpu::conv2d_pack
  const void* scale;          // [K], accumulation type; null = 1
  const void* shift;          // [K], accumulation type; null = 0
  NhwcInput residual;         // [N, P, Q, K], same dtype as x; data null = none
  Activation activation;
  NhwcOutput y;  // [N, P, Q, K]; stride_w may exceed K (a slice of a concatenation)
};

struct Conv2dBackward {
  ConvShape shape;
  DType dtype;
  NhwcInput grad_z;  // [N, P, Q, K]: gradient of the convolution's raw output
};

namespace cpu {

// The packed form may depend on C, K, R, S, stride, padding, dilation and the ISA in force, never on N, H, W.
size_t conv2d_packed_bytes(const ConvShape& shape, DType dtype);
void conv2d_pack(const ConvShape& shape, DType dtype, const WeightView& weight, void* packed);
void conv2d_forward(const Conv2dForward& args);

// grad_x [N, H, W, C], written completely.
void conv2d_backward_data(const Conv2dBackward& args, const WeightView& weight, const NhwcOutput& grad_x);
// grad_weight [K, C, R, S] contiguous, of args.dtype; fixed summation order whatever the thread count.
void conv2d_backward_weight(const Conv2dBackward& args, const NhwcInput& x, void* grad_weight);

}  // namespace cpu
}  // namespace ik
