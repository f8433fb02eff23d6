// separable_conv2d: [act] -> depthwise R x S -> [act] -> pointwise 1 x 1 -> scale, shift -> + residual -> [act].
#pragma once
#include <cstddef>

#include "common/types.h"

namespace ik {

struct SeparableForward {
  ConvShape shape;  // R, S, stride, padding, dilation are those of the depthwise part; K of the pointwise
  DType dtype;
  NhwcInput x;                   // [N, H, W, C]
  const void* packed_depthwise;  // written by the backend's separable_pack
  const void* packed_pointwise;
  const void* depthwise_bias;  // [C], accumulation type; null = 0
  const void* scale;           // [K], accumulation type; null = 1
  const void* shift;           // [K], accumulation type; null = 0
  NhwcInput residual;          // [N, P, Q, K]; data null = none
  Activation input_activation;
  Activation mid_activation;
  Activation activation;
  NhwcOutput y;  // [N, P, Q, K]
};

// Gradients of the part before BN. The depthwise output is recomputed, not read. A null output is not wanted.
struct SeparableBackward {
  ConvShape shape;
  DType dtype;
  NhwcInput grad_z;             // [N, P, Q, K]: gradient of the pointwise output
  NhwcInput x;                  // [N, H, W, C]
  WeightView depthwise_weight;  // [C, 1, R, S]: stride_k counts channels, stride_c unused
  WeightView pointwise_weight;  // [K, C, 1, 1]
  const void* depthwise_bias;   // [C], accumulation type; null = 0
  Activation input_activation;
  Activation mid_activation;
  NhwcOutput grad_x;            // [N, H, W, C]
  void* grad_depthwise_weight;  // [C, 1, R, S] contiguous, dtype
  void* grad_pointwise_weight;  // [K, C, 1, 1] contiguous, dtype
  void* grad_depthwise_bias;    // [C], accumulation type
  bool wide_weights = false;    // host only: the weights' gradients in the accumulation type
};

namespace cpu {

// The packed form may depend on C, K, R, S, stride, padding, dilation and the ISA in force, never on N, H, W.
size_t separable_packed_depthwise_bytes(const ConvShape& shape, DType dtype);
size_t separable_packed_pointwise_bytes(const ConvShape& shape, DType dtype);
void separable_pack(const ConvShape& shape, DType dtype, const WeightView& depthwise, const WeightView& pointwise,
                    void* packed_depthwise, void* packed_pointwise);
void separable_forward(const SeparableForward& args);
void separable_backward(const SeparableBackward& args);

}  // namespace cpu

// All pointers are device memory; the vectors and the statistics are float. Nothing is allocated, nothing synchronises.
namespace cuda {

struct Context;

// Null where the kernels can run, else the reason: static text.
const char* separable_unsupported(const SeparableForward& args, const Context& context);
// [R * S][C rounded up to 8] and [K][C rounded up to 8], of dtype, zero filled.
size_t separable_packed_depthwise_bytes(const ConvShape& shape, DType dtype);
size_t separable_packed_pointwise_bytes(const ConvShape& shape, DType dtype);
void separable_pack(const ConvShape& shape, DType dtype, const WeightView& depthwise, const WeightView& pointwise,
                    void* packed_depthwise, void* packed_pointwise, const Context& context);
// Enough for separable_forward, or with `statistics` for separable_forward_statistics; 16-byte aligned.
size_t separable_workspace_bytes(const SeparableForward& args, bool statistics, const Context& context);
void separable_forward(const SeparableForward& args, void* workspace, const Context& context);
// y = raw pointwise output + shift; mean [K] and biased variance [K] of y over N, P, Q. Needs scale and residual null
// and no activation.
void separable_forward_statistics(const SeparableForward& args, float* mean, float* var, void* workspace,
                                  const Context& context);

// Null where the kernels can run, else the reason: static text.
const char* separable_backward_unsupported(const SeparableBackward& args, const Context& context);
// Depends on which gradients are wanted; 16-byte aligned.
size_t separable_backward_workspace_bytes(const SeparableBackward& args, const Context& context);
// Writes nothing for an empty batch.
void separable_backward(const SeparableBackward& args, void* workspace, const Context& context);

}  // namespace cuda
}  // namespace ik
