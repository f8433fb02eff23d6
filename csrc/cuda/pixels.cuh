// Activations seen as pixels of K channels, read and written kCount channels at a time.
#pragma once
#include <stdexcept>

#include "common/types.h"
#include "cuda/element.cuh"
#include "cuda/fast_divide.h"

namespace ik::cuda {

// kCount elements in registers as they lie in memory: 16 bytes, or one element.
template <typename T, int kCount>
struct Packet {
  static_assert(sizeof(T) * kCount == 16, "an access has 16 bytes or one element");
  uint4 bits;
};
template <typename T>
struct Packet<T, 1> {
  T value;
};

template <typename T, int kCount>
IK_DEVICE Packet<T, kCount> load_packet(const T* from IK_AT) {
  if constexpr (kCount == 1) {
    return {*from};
  } else {
    return {ldg128(from IK_FROM)};
  }
}

template <typename T, int kCount>
IK_DEVICE void unpack(const Packet<T, kCount>& packet, float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    values[0] = to_float(packet.value);
  } else {
    const uint32_t words[4] = {packet.bits.x, packet.bits.y, packet.bits.z, packet.bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        values[i] = __uint_as_float(words[i]);
      } else {
        const float2 pair = Pair<T>::unpack(words[i]);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
      }
    }
  }
}

template <typename T, int kCount>
IK_DEVICE void store_floats(T* to, const float (&values)[kCount] IK_AT) {
  if constexpr (kCount == 1) {
    *to = Element<T>::from_float(values[0]);
  } else {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        words[i] = __float_as_uint(values[i]);
      } else {
        words[i] = Pair<T>::pack(values[2 * i], values[2 * i + 1]);
      }
    }
    stg128(to, make_uint4(words[0], words[1], words[2], words[3]) IK_FROM);
  }
}

// [N, P, Q] numbered m = (n P + p) Q + q.
struct Pixel {
  int n, p, q;
};

struct PixelGrid {
  FastDivide P, Q;

  IK_DEVICE Pixel at(int m) const {
    const int row = Q.quotient(m);
    const int n = P.quotient(row);
    return {n, row - n * static_cast<int>(P.divisor), m - row * static_cast<int>(Q.divisor)};
  }
};

template <typename T>
struct Pixels {
  T* data = nullptr;
  int64_t stride_n = 0;
  int64_t stride_h = 0;
  int64_t stride_w = 0;

  IK_DEVICE T* at(const Pixel& pixel) const {
    return data + pixel.n * stride_n + pixel.p * stride_h + pixel.q * stride_w;
  }
};

template <typename T>
Pixels<const T> pixels_of(const NhwcInput& view) {
  return {static_cast<const T*>(view.data), view.stride_n, view.stride_h, view.stride_w};
}

template <typename T>
Pixels<T> pixels_of(const NhwcOutput& view) {
  return {static_cast<T*>(view.data), view.stride_n, view.stride_h, view.stride_w};
}

template <typename Pointer>
bool is_one_row(const NhwcView<Pointer>& view, int64_t P, int64_t Q) {
  return view.data == nullptr || (view.stride_h == Q * view.stride_w && view.stride_n == P * view.stride_h);
}

// One row where the pixels of every view follow each other at one distance.
template <typename... Views>
PixelGrid pixel_grid(int64_t N, int64_t P, int64_t Q, const Views&... views) {
  if (N * P * Q >= int64_t{1} << 31) throw std::invalid_argument("expected fewer than 2^31 pixels");
  const bool joined = (is_one_row(views, P, Q) && ...);
  return joined ? PixelGrid{FastDivide(1), FastDivide(N * P * Q)} : PixelGrid{FastDivide(P), FastDivide(Q)};
}

// Whether every pixel of the view begins at a multiple of 16 bytes.
template <typename T, typename Pointer>
bool is_aligned(const NhwcView<Pointer>& view) {
  constexpr int64_t kCount = 16 / sizeof(T);
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.stride_n % kCount == 0 &&
         view.stride_h % kCount == 0 && view.stride_w % kCount == 0;
}

}  // namespace ik::cuda
