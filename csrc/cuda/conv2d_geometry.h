// The host's side of conv2d_tiles.cuh: what a convolution looks like to the kernels, and what they cannot do.
#pragma once
#include "common/types.h"
#include "cuda/conv2d_tiles.cuh"
#include "cuda/pixels.cuh"

namespace ik::cuda {

constexpr int64_t kChannelStep = 8;  // packed channels are a multiple of this

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
inline int64_t divide_up(int64_t value, int64_t step) { return (value + step - 1) / step; }

inline int64_t element_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

inline int64_t pixel_count(const ConvShape& shape) { return shape.N * shape.P() * shape.Q(); }

// Whether the channels of every pixel can be read 16 bytes at a time.
inline bool has_vectors(const NhwcInput& x, int64_t channels, DType dtype) {
  const int64_t step = 16 / element_bytes(dtype);
  return channels % kChannelStep == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride_n % step == 0 &&
         x.stride_h % step == 0 && x.stride_w % step == 0;
}

// Pointers and strides of a view that is read or written eight channels at a time.
template <typename Pointer>
bool has_octets(const NhwcView<Pointer>& view, int64_t channels, DType dtype) {
  const int64_t step = 16 / element_bytes(dtype);
  return channels % kBlockColumns == 0 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
         view.stride_n % step == 0 && view.stride_h % step == 0 && view.stride_w % step == 0;
}

inline const char* geometry_unsupported(const ConvShape& shape, DType dtype, const NhwcInput& x) {
  constexpr int64_t kInt32 = int64_t{1} << 31;
  if (dtype == DType::kFloat64) return "float64 runs on the reference backend";
  if (shape.C == 0) return "no input channels";
  if (shape.R > kMaxWindow || shape.S > kMaxWindow) return "a window side above 15";
  if (pixel_count(shape) > kInt32 - 256) return "2^31 output pixels or more";
  constexpr int64_t kSmallestRows = 64;
  constexpr int64_t kSmallestColumns = 32;
  const int64_t tiles = divide_up(pixel_count(shape), kSmallestRows) * divide_up(shape.K, kSmallestColumns);
  if (tiles >= kInt32) return "2^31 tiles or more";
  const int64_t reach = (shape.R - 1) * shape.dilation_h * x.stride_h + (shape.S - 1) * shape.dilation_w * x.stride_w;
  if ((reach + shape.C) * element_bytes(dtype) > kInt32 / 2) return "a window that spans 2^30 bytes or more";
  if (shape.R * shape.S * round_up(shape.C, kChannelStep) > kInt32 / 8) return "a window of too many weights";
  return nullptr;
}

inline ConvGeometry conv_geometry(const ConvShape& shape, DType dtype, const NhwcInput& x, const void* weight) {
  const int64_t bytes = element_bytes(dtype);
  ConvGeometry g = {};
  g.x = x.data;
  g.weight = weight;
  g.stride_n = x.stride_n * bytes;
  g.stride_h = x.stride_h * bytes;
  g.stride_w = x.stride_w * bytes;
  g.pixels = pixel_count(shape);
  g.C = static_cast<int>(shape.C);
  g.K = static_cast<int>(shape.K);
  g.H = static_cast<int>(shape.H);
  g.W = static_cast<int>(shape.W);
  g.R = static_cast<int>(shape.R);
  g.S = static_cast<int>(shape.S);
  g.stride_y = static_cast<int>(shape.stride_h);
  g.stride_x = static_cast<int>(shape.stride_w);
  g.pad_y = static_cast<int>(shape.pad_h);
  g.pad_x = static_cast<int>(shape.pad_w);
  g.dilation_y = static_cast<int>(shape.dilation_h);
  g.dilation_x = static_cast<int>(shape.dilation_w);
  g.tap_vectors = static_cast<int>(round_up(shape.C, kChannelStep) * bytes / kVectorBytes);
  g.row_vectors = g.R * g.S * g.tap_vectors;
  g.steps = static_cast<int>(divide_up(g.row_vectors, kStepVectors));
  g.image = FastDivide(shape.P() * shape.Q());
  g.row = FastDivide(shape.Q());
  g.taps = FastDivide(g.tap_vectors);
  g.window_row = FastDivide(shape.S);

  const int taps = kStepVectors / g.tap_vectors;
  g.advance_v = kStepVectors % g.tap_vectors;
  g.advance_s = taps % g.S;
  g.advance_r = taps / g.S;
  const int64_t down = shape.dilation_h * g.stride_h;
  const int64_t across = shape.dilation_w * g.stride_w;
  g.advance_bytes =
      static_cast<int>(g.advance_r * down + g.advance_s * across) + g.advance_v * static_cast<int>(kVectorBytes);
  g.carry_v_bytes = static_cast<int>(across) - g.tap_vectors * static_cast<int>(kVectorBytes);
  g.carry_s_bytes = static_cast<int>(down - shape.S * across);
  return g;
}

}  // namespace ik::cuda
