// The 3 x 3 window with stride and dilation 1, which nearly all depthwise layers have: neighbours in a row share what
// they read.
#pragma once
#include "common/types.h"
#include "cuda/depthwise_taps.cuh"

namespace ik::cuda {

constexpr int kSide = 3;

// The source of a sum over the window: the pixel (p, q) lies under tap (0, 0) of the window at
// (p + pad_y, q + pad_x).
template <typename T>
struct Source3x3 {
  Pixels<const T> pixels;
  int height, width;
  int pad_y, pad_x;
  bool relu;
};

template <typename T, int kCount>
IK_DEVICE void relu_packet(Packet<T, kCount>& packet) {
  uint32_t words[4] = {packet.bits.x, packet.bits.y, packet.bits.z, packet.bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      words[i] = __float_as_uint(relu(__uint_as_float(words[i])));
    } else {
      words[i] = max0<T>(words[i]);
    }
  }
  packet.bits = make_uint4(words[0], words[1], words[2], words[3]);
}

// What lies under row r of the windows of kNeighbours pixels from `first`.
template <typename T, int kCount, int kNeighbours>
IK_DEVICE void load_row(const Source3x3<T>& source, int channel, const Pixel& first, int r,
                        Packet<T, kCount> (&packets)[kNeighbours + kSide - 1]) {
  const int y = first.p - source.pad_y + r;
  const int x = first.q - source.pad_x;
  const Pixels<const T>& pixels = source.pixels;
  const char* from = reinterpret_cast<const char*>(pixels.data + first.n * pixels.stride_n + y * pixels.stride_h +
                                                   x * pixels.stride_w + channel);
  const int step = static_cast<int>(pixels.stride_w) * static_cast<int>(sizeof(T));
  const bool inside = static_cast<unsigned>(y) < static_cast<unsigned>(source.height);
#pragma unroll
  for (int c = 0; c < kNeighbours + kSide - 1; ++c) {
    const bool wanted = inside && static_cast<unsigned>(x + c) < static_cast<unsigned>(source.width);
    packets[c].bits = ldg128_or_zero(from + static_cast<int64_t>(step) * c, wanted);
  }
  if (!source.relu) return;
#pragma unroll
  for (int c = 0; c < kNeighbours + kSide - 1; ++c) relu_packet(packets[c]);
}

// sums += the window's taps times what lies under them, for neighbours of a row. kFlipped: the taps in reverse order.
template <bool kFlipped, typename T, int kCount, int kNeighbours>
IK_DEVICE void gather_3x3(const Source3x3<T>& source, int channel, const Pixel& first, const float* weights, int pitch,
                          float (&sums)[kNeighbours][kCount]) {
#pragma unroll 1
  for (int r = 0; r < kSide; ++r) {
    Packet<T, kCount> packets[kNeighbours + kSide - 1];
    load_row<T, kCount, kNeighbours>(source, channel, first, r, packets);
    float taps[kSide][kCount];
#pragma unroll
    for (int s = 0; s < kSide; ++s) {
      const int tap = r * kSide + s;
      load_weights(weights + (kFlipped ? kSide * kSide - 1 - tap : tap) * pitch, taps[s]);
    }
#pragma unroll
    for (int c = 0; c < kNeighbours + kSide - 1; ++c) {
      float values[kCount];
      unpack(packets[c], values);
#pragma unroll
      for (int s = 0; s < kSide; ++s) {
        const int j = c - s;
        if (j < 0 || j >= kNeighbours) continue;
#pragma unroll
        for (int i = 0; i < kCount; ++i) sums[j][i] = fmaf(values[i], taps[s][i], sums[j][i]);
      }
    }
  }
}

// sums[s] += gradient times what lies under tap (r, s), for the neighbours that exist.
template <typename T, int kCount, int kNeighbours>
IK_DEVICE void add_products_3x3(const Source3x3<T>& source, int channel, const Pixel& first, int r, int neighbours,
                                const float (&gradients)[kNeighbours][kCount], float (&sums)[kSide][kCount]) {
  Packet<T, kCount> packets[kNeighbours + kSide - 1];
  load_row<T, kCount, kNeighbours>(source, channel, first, r, packets);
#pragma unroll
  for (int c = 0; c < kNeighbours + kSide - 1; ++c) {
    float values[kCount];
    unpack(packets[c], values);
#pragma unroll
    for (int s = 0; s < kSide; ++s) {
      const int j = c - s;
      if (j < 0 || j >= kNeighbours || j >= neighbours) continue;
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[s][i] = fmaf(gradients[j][i], values[i], sums[s][i]);
    }
  }
}

}  // namespace ik::cuda
