// Products whose output channels come out in octets. In the accumulators of wgmma the thread of lane 4 g + q has
// columns 8 j + 2 q and 8 j + 2 q + 1 of every block j. Of 32 weight rows, row 8 j + 2 q + e is therefore loaded with
// channel 8 q + 2 j + e: then blocks 4 i to 4 i + 3 are channels 32 i + 8 q and the seven behind it, 16 bytes of the
// output, and scale, shift, residual and store need no exchange between threads. The copy engine does the reordering.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/element.cuh"
#include "cuda/launch.h"
#include "cuda/primitives.cuh"

namespace ik::cuda {

constexpr int kOctet = 8;
constexpr int kOctetGroup = 32;  // channels that four blocks hold together
constexpr int kOctetBlocks = 4;
constexpr int kSlabRows = 64;  // of one wgmma

// packed: [K][taps][row_channels], K and row_channels multiples of 8. One box is a group of rows, `channels` wide.
inline TensorMap make_octet_map(DType dtype, const void* packed, int64_t K, int64_t taps, int64_t C,
                                int64_t row_channels, int channels, Swizzle swizzle) {
  constexpr int kPair = 2;
  const int64_t row = taps * row_channels;
  return make_tensor_map({dtype,
                          packed,
                          {C, kPair, K / kOctet, kOctetBlocks, taps},
                          {row, kOctet * row, kPair * row, row_channels},
                          {channels, kPair, kOctetBlocks, kOctetBlocks, 1},
                          swizzle});
}

// kN channels from k on, zeros from K on.
template <int kN>
IK_DEVICE void load_octet_rows(const TensorMap* map, uint32_t shared, uint32_t barrier, int row_bytes, int c, int k,
                               int tap) {
#pragma unroll
  for (int group = 0; group < kN / kOctetGroup; ++group) {
    tma_load_5d(map, shared + group * kOctetGroup * row_bytes, barrier, c, 0, k / kOctet + group * kOctetBlocks, 0,
                tap);
  }
}

// The rows and columns of a thread: rows row0 + 64 s + 8 h for slab s and half h, columns column0 + 32 i and the seven
// behind it for group i.
struct OctetPlace {
  int row0;
  int column0;
};

// The warpgroup's tile begins at (row, column).
IK_DEVICE OctetPlace octet_place(int row, int column) {
  const int thread = threadIdx.x % 128;
  return {row + thread / 32 * 16 + thread % 32 / 4, column + thread % 4 * kOctet};
}

template <int kSlabs, int kN>
IK_DEVICE void take_octet(const float (&acc)[kSlabs][kN / 2], int slab, int group, int half, float (&values)[kOctet]) {
#pragma unroll
  for (int j = 0; j < kOctetBlocks; ++j) {
    values[2 * j] = acc[slab][16 * group + 4 * j + 2 * half];
    values[2 * j + 1] = acc[slab][16 * group + 4 * j + 2 * half + 1];
  }
}

IK_DEVICE void load_octet(const float* from, float (&values)[kOctet]) {
#pragma unroll
  for (int i = 0; i < kOctet; i += 4) {
    const uint4 bits = ldg128(from + i);
    values[i] = __uint_as_float(bits.x);
    values[i + 1] = __uint_as_float(bits.y);
    values[i + 2] = __uint_as_float(bits.z);
    values[i + 3] = __uint_as_float(bits.w);
  }
}

template <typename T>
IK_DEVICE void add_octet(const T* from, float (&values)[kOctet]) {
  const uint4 vector = ldg128(from);
  const uint32_t bits[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = Pair<T>::unpack(bits[i]);
    values[2 * i] += pair.x;
    values[2 * i + 1] += pair.y;
  }
}

template <typename T>
IK_DEVICE void store_octet(T* to, const float (&values)[kOctet]) {
  stg128(to, make_uint4(Pair<T>::pack(values[0], values[1]), Pair<T>::pack(values[2], values[3]),
                        Pair<T>::pack(values[4], values[5]), Pair<T>::pack(values[6], values[7])));
}

// y = act(scale * product + shift + residual) at pixels [0, rows) and channels [0, K). Pointers and strides are
// multiples of 16 bytes, K is a multiple of 8.
struct OctetEpilogue {
  const float* scale;    // [K]; null = 1
  const float* shift;    // [K]; null = 0
  const void* residual;  // null = none
  void* y;
  int64_t residual_stride;  // elements from pixel to pixel
  int64_t y_stride;
  int rows;
  int K;
  Activation activation;
};

template <typename T, int kSlabs, int kN>
IK_DEVICE void store_octets(const float (&acc)[kSlabs][kN / 2], const OctetPlace& place, const OctetEpilogue& args) {
  T* const y = static_cast<T*>(args.y) + place.row0 * args.y_stride + place.column0;
  const T* const residual = static_cast<const T*>(args.residual) + place.row0 * args.residual_stride + place.column0;
#pragma unroll
  for (int group = 0; group < kN / kOctetGroup; ++group) {
    const int column = place.column0 + group * kOctetGroup;
    if (column >= args.K) break;
    float scale[kOctet] = {1, 1, 1, 1, 1, 1, 1, 1};
    float shift[kOctet] = {};
    if (args.scale) load_octet(args.scale + column, scale);
    if (args.shift) load_octet(args.shift + column, shift);
#pragma unroll
    for (int half_row = 0; half_row < 2 * kSlabs; ++half_row) {
      const int row = half_row / 2 * kSlabRows + half_row % 2 * kOctet;
      if (place.row0 + row >= args.rows) continue;
      float values[kOctet];
      take_octet<kSlabs, kN>(acc, half_row / 2, group, half_row % 2, values);
#pragma unroll
      for (int i = 0; i < kOctet; ++i) values[i] = fmaf(values[i], scale[i], shift[i]);
      if (args.residual) add_octet(residual + row * args.residual_stride + group * kOctetGroup, values);
      activate(args.activation, values);
      store_octet(y + row * args.y_stride + group * kOctetGroup, values);
    }
  }
}

}  // namespace ik::cuda
