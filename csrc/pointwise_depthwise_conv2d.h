// pointwise_depthwise_conv2d: 1 x 1 -> activation -> depthwise window -> scale, shift (folded BN) -> activation.
#pragma once
#include <cstddef>

#include "common/types.h"

namespace ik {

struct PointwiseDepthwiseForward {
  ConvShape first;   // the 1 x 1: K output channels
  ConvShape second;  // the depthwise window over first's output: C = K, weight [K, 1, R, S]
  DType dtype;
  NhwcInput x;                // [N, H, W, C]
  const void* first_packed;   // written by cpu::conv2d_pack
  const void* second_packed;  // written by cpu::depthwise_window_pack
  Activation mid_activation;
  const void* scale;  // [K], accumulation type; null = 1
  const void* shift;  // [K], accumulation type; null = 0
  Activation activation;
  NhwcOutput y;  // [N, P, Q, K]
};

namespace cpu {

size_t depthwise_window_bytes(const ConvShape& second, DType dtype);
void depthwise_window_pack(const ConvShape& second, DType dtype, const WeightView& weight, void* packed);
void pointwise_depthwise_forward(const PointwiseDepthwiseForward& args);

}  // namespace cpu
}  // namespace ik
