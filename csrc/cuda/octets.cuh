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
  int tile_row;  // of the warpgroup
  int tile_column;
  int row0;
  int column0;
};

// The warpgroup's tile begins at (row, column).
IK_DEVICE OctetPlace octet_place(int row, int column) {
  const int thread = threadIdx.x % 128;
  return {row, column, row + thread / 32 * 16 + thread % 32 / 4, column + thread % 4 * kOctet};
}

// Channel 2 b + e of an octet lies in block b of its group.
IK_DEVICE constexpr int octet_register(int group, int half, int channel) {
  return 16 * group + 4 * (channel / 2) + 2 * half + channel % 2;
}

IK_DEVICE constexpr int octet_row(int slab, int half) { return slab * kSlabRows + half * 8; }

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

// The steps of the epilogue each pass over all accumulators, so that the loads of a pass overlap. A branch that hardly
// ever leaves (`break` below) bounds how far the compiler moves loads up, and with that the registers they need.

struct OctetScale {
  float scale[kOctet] = {1, 1, 1, 1, 1, 1, 1, 1};
  float shift[kOctet] = {};

  IK_DEVICE OctetScale(const OctetEpilogue& args, int column) {
    if (args.scale && column < args.K) load_octet(args.scale + column, scale);
    if (args.shift && column < args.K) load_octet(args.shift + column, shift);
  }
};

template <int kSlabs, int kN>
IK_DEVICE void scale_octets(float (&acc)[kSlabs][kN / 2], const OctetPlace& place, const OctetEpilogue& args) {
  constexpr bool kAhead = kSlabs * kN / 2 <= 160;  // registers for the next group's vectors as well
  OctetScale next(args, place.column0);
#pragma unroll
  for (int group = 0; group < kN / kOctetGroup; ++group) {
    const int column = group * kOctetGroup;
    if (place.tile_column + column >= args.K) break;
    if (!kAhead && group > 0) next = OctetScale(args, place.column0 + column);
    const OctetScale by = next;
    if (kAhead && group + 1 < kN / kOctetGroup) next = OctetScale(args, place.column0 + column + kOctetGroup);
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < kOctet; ++i) {
          float& value = acc[slab][octet_register(group, half, i)];
          value = fmaf(value, by.scale[i], by.shift[i]);
        }
      }
    }
  }
}

template <typename T, int kSlabs, int kN>
IK_DEVICE void add_residual_octets(float (&acc)[kSlabs][kN / 2], const OctetPlace& place, const OctetEpilogue& args) {
  const T* const first = static_cast<const T*>(args.residual) + place.row0 * args.residual_stride + place.column0;
#pragma unroll
  for (int slab = 0; slab < kSlabs; ++slab) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = octet_row(slab, half);
      if (place.tile_row + row >= args.rows) break;
#pragma unroll
      for (int group = 0; group < kN / kOctetGroup; ++group) {
        const int column = group * kOctetGroup;
        uint4 vector = make_uint4(0, 0, 0, 0);
        if (place.row0 + row < args.rows && place.column0 + column < args.K) {
          vector = ldg128(first + row * args.residual_stride + column);
        }
        const uint32_t bits[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
        for (int i = 0; i < kOctet; i += 2) {
          const float2 pair = Pair<T>::unpack(bits[i / 2]);
          acc[slab][octet_register(group, half, i)] += pair.x;
          acc[slab][octet_register(group, half, i + 1)] += pair.y;
        }
      }
    }
  }
}

template <typename T, int kCount>
IK_DEVICE uint4 pack_octet(const float (&acc)[kCount], int group, int half) {
  uint32_t bits[4];
#pragma unroll
  for (int i = 0; i < kOctet; i += 2) {
    bits[i / 2] = Pair<T>::pack(acc[octet_register(group, half, i)], acc[octet_register(group, half, i + 1)]);
  }
  return make_uint4(bits[0], bits[1], bits[2], bits[3]);
}

template <typename T, int kSlabs, int kN>
IK_DEVICE void write_octets(const float (&acc)[kSlabs][kN / 2], const OctetPlace& place, const OctetEpilogue& args) {
  T* const first = static_cast<T*>(args.y) + place.row0 * args.y_stride + place.column0;
#pragma unroll
  for (int slab = 0; slab < kSlabs; ++slab) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = octet_row(slab, half);
#pragma unroll
      for (int group = 0; group < kN / kOctetGroup; ++group) {
        const int column = group * kOctetGroup;
        const uint4 octet = pack_octet<T>(acc[slab], group, half);
        if (place.row0 + row < args.rows && place.column0 + column < args.K) {
          stg128(first + row * args.y_stride + column, octet);
        }
      }
    }
  }
}

// The choice comes once for each group: that bounds the registers as above.
template <int kSlabs, int kN>
IK_DEVICE void activate_octets(float (&acc)[kSlabs][kN / 2], Activation activation) {
  if (activation == Activation::kNone) return;
  constexpr int kGroupRegisters = kOctetGroup / 2;
#pragma unroll
  for (int slab = 0; slab < kSlabs; ++slab) {
#pragma unroll
    for (int first = 0; first < kN / 2; first += kGroupRegisters) {
      float values[kGroupRegisters];
#pragma unroll
      for (int i = 0; i < kGroupRegisters; ++i) values[i] = acc[slab][first + i];
      activate(activation, values);
#pragma unroll
      for (int i = 0; i < kGroupRegisters; ++i) acc[slab][first + i] = values[i];
    }
  }
}

template <typename T, int kSlabs, int kN>
IK_DEVICE void finish_octets(float (&acc)[kSlabs][kN / 2], const OctetPlace& place, const OctetEpilogue& args) {
  scale_octets<kSlabs, kN>(acc, place, args);
  if (args.residual) add_residual_octets<T, kSlabs, kN>(acc, place, args);
  activate_octets<kSlabs, kN>(acc, args.activation);
  write_octets<T, kSlabs, kN>(acc, place, args);
}

}  // namespace ik::cuda
