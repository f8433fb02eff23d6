// The depthwise half: sums over a window for four pixels that lie side by side and one 16-byte vector of channels.
// Weights [R * S] and, except where it gathers, pixels are rows of 128 bytes in shared memory, so that eight lanes read
// one pixel without a bank conflict whatever the stride and dilation.
#pragma once
#include "cuda/separable_conv2d_math.cuh"

namespace ik::cuda::separable {

constexpr int kGroup = 4;  // output pixels of one thread

struct DepthwiseWindow {
  int R, S;
  int stride_h, stride_w;
  int dilation_h, dilation_w;
};

template <Math kMath>
using GroupSums = float[kGroup][Format<kMath>::kVector];

template <Math kMath>
IK_DEVICE void load_weights(uint32_t address, float (&values)[Format<kMath>::kVector]) {
  Format<kMath>::unpack(lds128(address), values);
}

// bound: of Format::lower_bound.
template <Math kMath>
IK_DEVICE void load_input(uint32_t address, uint32_t bound, float (&values)[Format<kMath>::kVector]) {
  using Form = Format<kMath>;
  const uint4 bits = lds128(address);
  Form::unpack(make_uint4(Form::at_least(bits.x, bound), Form::at_least(bits.y, bound), Form::at_least(bits.z, bound),
                          Form::at_least(bits.w, bound)),
               values);
}

template <int kCount>
IK_DEVICE void multiply_add(float (&sums)[kCount], const float (&weights)[kCount], const float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] = fmaf(weights[i], values[i], sums[i]);
}

// Windows of kS adjacent columns, stride 1: each input vector is read once for all four pixels. halo: the first input
// pixel of the group; row_bytes: between the window's rows.
template <Math kMath, int kS>
IK_DEVICE void sum_adjacent(GroupSums<kMath>& sums, int R, uint32_t bound, uint32_t halo, int row_bytes,
                            uint32_t weights) {
  constexpr int kVector = Format<kMath>::kVector;
#pragma unroll 1
  for (int r = 0; r < R; ++r) {  // gate: depthwise trips=3
    float taps[kS][kVector];
#pragma unroll
    for (int s = 0; s < kS; ++s) load_weights<kMath>(weights + s * kRowBytes, taps[s]);
#pragma unroll
    for (int column = 0; column < kGroup + kS - 1; ++column) {
      float values[kVector];
      load_input<kMath>(halo + column * kRowBytes, bound, values);
#pragma unroll
      for (int s = 0; s < kS; ++s) {
        const int pixel = column - s;
        if (pixel >= 0 && pixel < kGroup) multiply_add(sums[pixel], taps[s], values);
      }
    }
    halo += row_bytes;
    weights += kS * kRowBytes;
  }
}

// Any window, stride and dilation.
template <Math kMath>
IK_DEVICE void sum_spread(GroupSums<kMath>& sums, const DepthwiseWindow& window, uint32_t bound, uint32_t halo,
                          int row_bytes, uint32_t weights) {
  constexpr int kVector = Format<kMath>::kVector;
  const int pixel_bytes = window.stride_w * kRowBytes;
  const int column_bytes = window.dilation_w * kRowBytes;
#pragma unroll 1
  for (int r = 0; r < window.R; ++r) {
    uint32_t tap = halo;
#pragma unroll 1
    for (int s = 0; s < window.S; ++s) {
      float weight[kVector];
      load_weights<kMath>(weights, weight);
#pragma unroll
      for (int pixel = 0; pixel < kGroup; ++pixel) {
        float values[kVector];
        load_input<kMath>(tap + pixel * pixel_bytes, bound, values);
        multiply_add(sums[pixel], weight, values);
      }
      tap += column_bytes;
      weights += kRowBytes;
    }
    halo += row_bytes;
  }
}

template <Math kMath>
IK_DEVICE void sum_window(GroupSums<kMath>& sums, const DepthwiseWindow& window, uint32_t bound, uint32_t halo,
                          int row_bytes, uint32_t weights) {
  constexpr int kAdjacent = 3;
  if (window.S == kAdjacent && window.stride_w == 1 && window.dilation_w == 1) {
    sum_adjacent<kMath, kAdjacent>(sums, window.R, bound, halo, row_bytes, weights);
  } else {
    sum_spread<kMath>(sums, window, bound, halo, row_bytes, weights);
  }
}

// One image as the gathering variant sees it: any C, any strides, any window.
template <typename Type>
struct GatheredImage {
  const Type* data;
  int stride_h, stride_w;
  int H, W;
  int channels;  // of the vector, inside C
  bool whole;    // the vector is one aligned access
};

template <Math kMath>
IK_DEVICE void gather_vector(const GatheredImage<typename Format<kMath>::Type>& image, int h, int w,
                             float (&values)[Format<kMath>::kVector]) {
  constexpr int kVector = Format<kMath>::kVector;
  const auto* from = image.data + h * image.stride_h + w * image.stride_w;
  if (image.whole) {
    Format<kMath>::unpack(ldg128(from), values);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] = i < image.channels ? to_float(from[i]) : 0.0f;
}

// h0, w0: the first tap of the group's first pixel, in the image or in its padding.
template <Math kMath>
IK_DEVICE void sum_gathered(GroupSums<kMath>& sums, const DepthwiseWindow& window, Activation activation,
                            const GatheredImage<typename Format<kMath>::Type>& image, int h0, int w0,
                            uint32_t weights) {
  constexpr int kVector = Format<kMath>::kVector;
#pragma unroll 1
  for (int r = 0; r < window.R; ++r) {
    const int h = h0 + r * window.dilation_h;
#pragma unroll 1
    for (int s = 0; s < window.S; ++s) {
      float weight[kVector];
      load_weights<kMath>(weights, weight);
      weights += kRowBytes;
      if (h < 0 || h >= image.H) continue;
#pragma unroll
      for (int pixel = 0; pixel < kGroup; ++pixel) {
        const int w = w0 + s * window.dilation_w + pixel * window.stride_w;
        if (w < 0 || w >= image.W) continue;
        float values[kVector];
        gather_vector<kMath>(image, h, w, values);
        activate(activation, values);
        multiply_add(sums[pixel], weight, values);
      }
    }
  }
}

// Rounds the sums and writes them as rows row0 .. row0 + 3 of the A tile.
template <Math kMath>
IK_DEVICE void store_group(GroupSums<kMath>& sums, Activation mid_activation, uint32_t tile, int row0, int vector) {
#pragma unroll
  for (int pixel = 0; pixel < kGroup; ++pixel) {
    activate(mid_activation, sums[pixel]);
    sts128(tile + swizzled(row0 + pixel, vector), Format<kMath>::pack(sums[pixel]));
  }
}

}  // namespace ik::cuda::separable
