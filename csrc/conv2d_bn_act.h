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
  NhwcInput grad_z;       // [N, P, Q, K]: gradient of the convolution's raw output
  bool batch_statistics;  // grad_z of an image depends on the others already, so that its gradient's bits may, too
};

namespace cpu {

// The packed form may depend on C, K, R, S, stride, padding, dilation and the ISA in force, never on N, H, W.
size_t conv2d_packed_bytes(const ConvShape& shape, DType dtype);
void conv2d_pack(const ConvShape& shape, DType dtype, const WeightView& weight, void* packed);
void conv2d_forward(const Conv2dForward& args);

// grad_x [N, H, W, C], written completely.
void conv2d_backward_data(const Conv2dBackward& args, const WeightView& weight, const NhwcOutput& grad_x);
// grad_weight [K, C, R, S] of args.dtype, or `wide` of the accumulation type; fastest with adjacent input channels;
// fixed summation order whatever the thread count. Not for an empty batch.
void conv2d_backward_weight(const Conv2dBackward& args, const NhwcInput& x, const WeightOutput& grad_weight, bool wide);

}  // namespace cpu

// All pointers are device memory; scale, shift, mean and var are float. Nothing is allocated, nothing synchronises.
namespace cuda {

struct Context;

// Null where the kernels can run, else the reason: static text.
const char* conv2d_unsupported(const Conv2dForward& args, const Context& context);
// [K][R * S][C rounded up to 8], of dtype, zero filled.
size_t conv2d_packed_bytes(const ConvShape& shape, DType dtype);
void conv2d_pack(const ConvShape& shape, DType dtype, const WeightView& weight, void* packed, const Context& context);
// Enough for conv2d_forward, or with `statistics` for conv2d_forward_statistics; 16-byte aligned.
size_t conv2d_workspace_bytes(const Conv2dForward& args, bool statistics, const Context& context);
void conv2d_forward(const Conv2dForward& args, void* workspace, const Context& context);
// y = raw convolution + shift; mean [K] and biased variance [K] of y over N, P, Q. Needs scale and residual null and
// no activation.
void conv2d_forward_statistics(const Conv2dForward& args, float* mean, float* var, void* workspace,
                               const Context& context);

}  // namespace cuda
}  // namespace ik
