// Plain types shared by every backend's kernels. No torch headers: nvcc and the sanitizer builds compile this too.
#pragma once
#include <cstdint>

namespace ik {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

enum class Activation : int { kNone, kRelu, kRelu6, kElu, kSilu };

// Activations [N, H, W, C] whose channel stride is 1. Strides count elements; a null pointer means "not given".
template <typename Pointer>
struct NhwcView {
  Pointer data = nullptr;
  int64_t stride_n = 0;
  int64_t stride_h = 0;
  int64_t stride_w = 0;
};
using NhwcInput = NhwcView<const void*>;
using NhwcOutput = NhwcView<void*>;

// A dense weight [K, C, R, S] with any strides (elements).
template <typename Pointer>
struct KcrsView {
  Pointer data = nullptr;
  int64_t stride_k = 0;
  int64_t stride_c = 0;
  int64_t stride_r = 0;
  int64_t stride_s = 0;
};
using WeightView = KcrsView<const void*>;
using WeightOutput = KcrsView<void*>;

// Geometry of a 2-d convolution: input [N, C, H, W], window [R, S], K output channels, output [N, K, P, Q].
struct ConvShape {
  int64_t N, C, H, W;
  int64_t K, R, S;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;

  int64_t P() const { return (H + 2 * pad_h - dilation_h * (R - 1) - 1) / stride_h + 1; }
  int64_t Q() const { return (W + 2 * pad_w - dilation_w * (S - 1) - 1) / stride_w + 1; }
};

// Per-channel vectors (scale, shift, mean, ...) are held in the accumulation type: double for kFloat64, float
// otherwise.

}  // namespace ik
