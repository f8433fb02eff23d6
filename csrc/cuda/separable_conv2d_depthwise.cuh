// The depthwise half: sums over a window for groups of four pixels that lie side by side and a few adjacent channels.
// Weights [R * S] and, except where it gathers, pixels are rows of 128 bytes in shared memory, so that the lanes of a
// pixel read it without a bank conflict whatever the stride and dilation.
#pragma once
#include "cuda/separable_conv2d_math.cuh"

namespace ik::cuda::separable {

constexpr int kGroup = 4;  // output pixels side by side

struct DepthwiseWindow {
  int R, S;
  int stride_h, stride_w;
  int dilation_h, dilation_w;
};

// What a thread sums. Two groups of pixels read the weights once for both of them; where inputs are gathered, one group
// takes them 16 bytes at a time.
template <Math kMathOf, bool kGather>
struct Share {
  static constexpr Math kMath = kMathOf;
  static constexpr int kGroups = kGather ? 1 : 2;
  static constexpr int kPixels = kGroups * kGroup;
  static constexpr int kBytes = 16 / kGroups;  // of channels
  static constexpr int kWords = kBytes / 4;
  static constexpr int kChannels = kBytes / static_cast<int>(sizeof(typename Format<kMath>::Type));
  static constexpr int kLanes = kRowBytes / kBytes;  // side by side
  using Sums = float[kGroups][kGroup][kChannels];
};

IK_DEVICE void load_words(uint32_t address, uint32_t (&words)[2]) {
  const uint2 bits = lds64(address);
  words[0] = bits.x;
  words[1] = bits.y;
}
IK_DEVICE void load_words(uint32_t address, uint32_t (&words)[4]) {
  const uint4 bits = lds128(address);
  words[0] = bits.x;
  words[1] = bits.y;
  words[2] = bits.z;
  words[3] = bits.w;
}
IK_DEVICE void store_words(uint32_t address, const uint32_t (&words)[2]) {
  sts64(address, make_uint2(words[0], words[1]));
}
IK_DEVICE void store_words(uint32_t address, const uint32_t (&words)[4]) {
  sts128(address, make_uint4(words[0], words[1], words[2], words[3]));
}

template <typename Share>
IK_DEVICE void load_weights(uint32_t address, float (&values)[Share::kChannels]) {
  uint32_t words[Share::kWords];
  load_words(address, words);
  Format<Share::kMath>::unpack(words, values);
}

// bound: of Format::lower_bound.
template <typename Share>
IK_DEVICE void load_input(uint32_t address, uint32_t bound, float (&values)[Share::kChannels]) {
  uint32_t words[Share::kWords];
  load_words(address, words);
#pragma unroll
  for (int i = 0; i < Share::kWords; ++i) words[i] = Format<Share::kMath>::at_least(words[i], bound);
  Format<Share::kMath>::unpack(words, values);
}

template <int kCount>
IK_DEVICE void multiply_add(float (&sums)[kCount], const float (&weights)[kCount], const float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] = fmaf(weights[i], values[i], sums[i]);
}

// Windows of kS adjacent columns, stride 1: each input is read once for all four pixels of a group. halo: the first
// input pixel of each group; row_bytes: between the window's rows.
template <typename Share, int kS>
IK_DEVICE void sum_adjacent(typename Share::Sums& sums, int R, uint32_t bound, const uint32_t (&halo)[Share::kGroups],
                            int row_bytes, uint32_t weights) {
#pragma unroll 1
  for (int r = 0; r < R; ++r) {  // gate: depthwise trips=3
    float taps[kS][Share::kChannels];
#pragma unroll
    for (int s = 0; s < kS; ++s) load_weights<Share>(weights + s * kRowBytes, taps[s]);
#pragma unroll
    for (int group = 0; group < Share::kGroups; ++group) {
      const uint32_t row = halo[group] + r * row_bytes;
#pragma unroll
      for (int column = 0; column < kGroup + kS - 1; ++column) {
        float values[Share::kChannels];
        load_input<Share>(row + column * kRowBytes, bound, values);
#pragma unroll
        for (int s = 0; s < kS; ++s) {
          const int pixel = column - s;
          if (pixel >= 0 && pixel < kGroup) multiply_add(sums[group][pixel], taps[s], values);
        }
      }
    }
    weights += kS * kRowBytes;
  }
}

// Any window, stride and dilation.
template <typename Share>
IK_DEVICE void sum_spread(typename Share::Sums& sums, const DepthwiseWindow& window, uint32_t bound,
                          const uint32_t (&halo)[Share::kGroups], int row_bytes, uint32_t weights) {
  const int pixel_bytes = window.stride_w * kRowBytes;
  const int column_bytes = window.dilation_w * kRowBytes;
  uint32_t row = 0;
#pragma unroll 1
  for (int r = 0; r < window.R; ++r) {
    uint32_t tap = row;
#pragma unroll 1
    for (int s = 0; s < window.S; ++s) {
      float weight[Share::kChannels];
      load_weights<Share>(weights, weight);
#pragma unroll
      for (int group = 0; group < Share::kGroups; ++group) {
#pragma unroll
        for (int pixel = 0; pixel < kGroup; ++pixel) {
          float values[Share::kChannels];
          load_input<Share>(halo[group] + tap + pixel * pixel_bytes, bound, values);
          multiply_add(sums[group][pixel], weight, values);
        }
      }
      tap += column_bytes;
      weights += kRowBytes;
    }
    row += row_bytes;
  }
}

template <typename Share>
IK_DEVICE void sum_window(typename Share::Sums& sums, const DepthwiseWindow& window, uint32_t bound,
                          const uint32_t (&halo)[Share::kGroups], int row_bytes, uint32_t weights) {
  constexpr int kAdjacent = 3;
  if (window.S == kAdjacent && window.stride_w == 1 && window.dilation_w == 1) {
    sum_adjacent<Share, kAdjacent>(sums, window.R, bound, halo, row_bytes, weights);
  } else {
    sum_spread<Share>(sums, window, bound, halo, row_bytes, weights);
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
template <typename Share>
IK_DEVICE void sum_gathered(typename Share::Sums& sums, const DepthwiseWindow& window, Activation activation,
                            const GatheredImage<typename Format<Share::kMath>::Type>& image, int h0, int w0,
                            uint32_t weights) {
#pragma unroll 1
  for (int r = 0; r < window.R; ++r) {
    const int h = h0 + r * window.dilation_h;
#pragma unroll 1
    for (int s = 0; s < window.S; ++s) {
      float weight[Share::kChannels];
      load_weights<Share>(weights, weight);
      weights += kRowBytes;
      if (h < 0 || h >= image.H) continue;
#pragma unroll
      for (int pixel = 0; pixel < kGroup; ++pixel) {
        const int w = w0 + s * window.dilation_w + pixel * window.stride_w;
        if (w < 0 || w >= image.W) continue;
        float values[Share::kChannels];
        gather_vector<Share::kMath>(image, h, w, values);
        activate(activation, values);
        multiply_add(sums[0][pixel], weight, values);
      }
    }
  }
}

// Rounds the sums and writes them as rows row0, row0 + 1, ... of the A tile; lane: of those side by side.
template <typename Share>
IK_DEVICE void store_sums(typename Share::Sums& sums, Activation mid_activation, uint32_t tile, int row0, int lane) {
  constexpr int kOfVector = 16 / Share::kBytes;
  const int vector = lane / kOfVector;
  const int within = lane % kOfVector * Share::kBytes;
#pragma unroll
  for (int pixel = 0; pixel < Share::kPixels; ++pixel) activate(mid_activation, sums[pixel / kGroup][pixel % kGroup]);
  // gate: store
#pragma unroll
  for (int pixel = 0; pixel < Share::kPixels; ++pixel) {
    uint32_t words[Share::kWords];
    Format<Share::kMath>::pack(sums[pixel / kGroup][pixel % kGroup], words);
    store_words(tile + swizzled(row0 + pixel, vector) + within, words);
  }
}

}  // namespace ik::cuda::separable
