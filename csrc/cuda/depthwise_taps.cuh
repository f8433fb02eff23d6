// The depthwise window seen from a pixel: which pixels of the other tensor lie under its taps, forward and backward.
#pragma once
#include <type_traits>

#include "common/types.h"
#include "cuda/activation.cuh"
#include "cuda/pixels.cuh"

namespace ik::cuda {

constexpr int kMostTaps = 64;

// One axis: positions of the output are `stride` apart in the input, taps `dilation`.
struct TapAxis {
  int input, output;
  int pad, dilation;
  FastDivide stride;

  // The input position under a tap that is `step` from the window's first; false outside of the image.
  IK_DEVICE bool forward(int output_position, int step, int& input_position) const {
    input_position = output_position * static_cast<int>(stride.divisor) - pad + step;
    return static_cast<unsigned>(input_position) < static_cast<unsigned>(input);
  }
  // The output position whose tap at `step` lies on the input position; false where there is none.
  IK_DEVICE bool backward(int input_position, int step, int& output_position) const {
    const int distance = input_position + pad - step;
    output_position = stride.quotient(distance < 0 ? 0 : distance);
    return distance >= 0 && output_position * static_cast<int>(stride.divisor) == distance && output_position < output;
  }
};

struct DepthwiseWindow {
  int R, S;
  TapAxis y, x;
};

inline DepthwiseWindow depthwise_window(const ConvShape& shape) {
  const auto number = [](int64_t value) { return static_cast<int>(value); };
  return {
      number(shape.R),
      number(shape.S),
      {number(shape.H), number(shape.P()), number(shape.pad_h), number(shape.dilation_h), FastDivide(shape.stride_h)},
      {number(shape.W), number(shape.Q()), number(shape.pad_w), number(shape.dilation_w), FastDivide(shape.stride_w)}};
}

template <typename T>
IK_DEVICE uint32_t max0(uint32_t pair) {
  if constexpr (std::is_same_v<T, bf16>) {
    return bf2_max0(pair);
  } else {
    return h2_max0(pair);
  }
}

// Values of a packet after the activation. ReLU works on the packed pairs.
template <typename T, int kCount>
IK_DEVICE void unpack_activated(Packet<T, kCount> packet, Activation activation, float (&values)[kCount]) {
  if constexpr (sizeof(T) == 2 && kCount > 1) {
    if (activation == Activation::kRelu) {
      packet.bits.x = max0<T>(packet.bits.x);
      packet.bits.y = max0<T>(packet.bits.y);
      packet.bits.z = max0<T>(packet.bits.z);
      packet.bits.w = max0<T>(packet.bits.w);
      return unpack(packet, values);
    }
  }
  unpack(packet, values);
  activate(activation, values);
}

template <int kCount>
IK_DEVICE void load_weights(const float* from, float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    values[0] = *from;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint4 bits = ldg128(from + i);
      values[i] = __uint_as_float(bits.x);
      values[i + 1] = __uint_as_float(bits.y);
      values[i + 2] = __uint_as_float(bits.z);
      values[i + 3] = __uint_as_float(bits.w);
    }
  }
}

// Adds tap times value for kPixels pixels. kBackward: the pixels are the input's and the source is the output's
// gradient, else the other way round. weights: of the first tap; `pitch` floats further is the next.
template <bool kBackward, typename T, int kCount, int kPixels>
IK_DEVICE void gather_taps(const DepthwiseWindow& window, const Pixels<const T>& source, int channel,
                           const Pixel (&pixels)[kPixels], const bool (&wanted)[kPixels], Activation activation,
                           const float* weights, int pitch, float (&sums)[kPixels][kCount]) {
  const T* images[kPixels];
#pragma unroll
  for (int j = 0; j < kPixels; ++j) images[j] = source.data + pixels[j].n * source.stride_n + channel;
  const int stride_h = static_cast<int>(source.stride_h);
  const int stride_w = static_cast<int>(source.stride_w);
#pragma unroll 1
  for (int r = 0; r < window.R; ++r) {
    bool inside_rows[kPixels];
    int rows[kPixels];
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      const int step = r * window.y.dilation;
      inside_rows[j] = wanted[j] && (kBackward ? window.y.backward(pixels[j].p, step, rows[j])
                                               : window.y.forward(pixels[j].p, step, rows[j]));
    }
#pragma unroll 1
    for (int s = 0; s < window.S; ++s) {
      Packet<T, kCount> packets[kPixels];
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        const int step = s * window.x.dilation;
        int column;
        const bool inside =
            kBackward ? window.x.backward(pixels[j].q, step, column) : window.x.forward(pixels[j].q, step, column);
        packets[j] = {};
        if (inside_rows[j] && inside) {
          packets[j] = load_packet<T, kCount>(images[j] + rows[j] * stride_h + column * stride_w);
        }
      }
      float weight[kCount];
      load_weights(weights, weight);
      weights += pitch;
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        float values[kCount];
        unpack_activated(packets[j], activation, values);
#pragma unroll
        for (int i = 0; i < kCount; ++i) sums[j][i] = fmaf(values[i], weight[i], sums[j][i]);
      }
    }
  }
}

}  // namespace ik::cuda
