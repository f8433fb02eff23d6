// How a convolution becomes a product: the pixels of the output are rows, and along a row lie the channels under every
// tap of the window, in vectors of 16 bytes. Thread t copies vector t % 4 of every kThreads / 4-th row of a stage, so
// all its rows are at the same tap and channel.
#pragma once
#include "common/types.h"
#include "cuda/fast_divide.h"
#include "cuda/tile_product.cuh"

namespace ik::cuda {

constexpr int kMaxWindow = 15;  // a row of the window and a column are bits 0..14 and 16..30 of a mask

struct ConvGeometry {
  const void* x;
  const void* weight;                    // packed: [K][R * S][channels rounded up to 8]
  int64_t stride_n, stride_h, stride_w;  // bytes
  int64_t pixels;                        // N P Q
  int C, K, H, W, R, S;
  int stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
  int tap_vectors;        // vectors of all channels under one tap
  int row_vectors;        // of all taps
  int steps;              // of four vectors
  FastDivide image;       // P Q
  FastDivide row;         // Q
  FastDivide taps;        // by tap_vectors
  FastDivide window_row;  // by S
  // From one step to the next, in taps and vectors with both carries, and the same in bytes.
  int advance_r, advance_s, advance_v;
  int advance_bytes, carry_v_bytes, carry_s_bytes;
};

struct PixelPosition {
  int n, p, q;
  bool inside;
};

IK_DEVICE PixelPosition pixel_position(int pixel, const FastDivide& image, const FastDivide& row) {
  const int n = image.quotient(pixel);
  const int in_image = pixel - n * static_cast<int>(image.divisor);
  const int p = row.quotient(in_image);
  return {n, p, in_image - p * static_cast<int>(row.divisor), true};
}

// The tap and vector of the next step, the same for all rows of a thread.
struct TapCursor {
  int r, s, v;
  int bytes;      // from the pixel under tap (0, 0), channel 0
  uint32_t bits;  // of the tap in a row's mask

  IK_DEVICE TapCursor(const ConvGeometry& g, int vector) {
    const int tap = g.taps.quotient(vector);
    v = vector - tap * g.tap_vectors;
    r = g.window_row.quotient(tap);
    s = tap - r * g.S;
    bytes = static_cast<int>(r * g.dilation_y * g.stride_h + s * g.dilation_x * g.stride_w) + v * kVectorBytes;
    set_bits();
  }

  IK_DEVICE void advance(const ConvGeometry& g) {
    r += g.advance_r;
    s += g.advance_s;
    v += g.advance_v;
    bytes += g.advance_bytes;
    if (v >= g.tap_vectors) {
      v -= g.tap_vectors;
      s += 1;
      bytes += g.carry_v_bytes;
    }
    if (s >= g.S) {
      s -= g.S;
      r += 1;
      bytes += g.carry_s_bytes;
    }
    set_bits();
  }

 private:
  // Behind the window no row has the bit.
  IK_DEVICE void set_bits() { bits = (1u << min(r, kMaxWindow)) | (0x10000u << s); }
};

// The rows of a tile that a thread copies; locate(row) is the output pixel of a row.
template <typename Tile>
struct LeftRows {
  static constexpr int kThreadsPerVector = Tile::kThreads / kStepVectors;
  static constexpr int kCount = Tile::kRows / kThreadsPerVector;
  const char* base[kCount];  // tap (0, 0), channel 0; may lie outside the image
  uint32_t mask[kCount];     // taps inside the image

  template <typename Locate>
  IK_DEVICE LeftRows(const ConvGeometry& g, int thread, Locate locate) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const PixelPosition at = locate(thread / kStepVectors + i * kThreadsPerVector);
      mask[i] = 0;
      base[i] = static_cast<const char*>(g.x);
      if (at.inside) place(g, at, i);
    }
  }

 private:
  IK_DEVICE void place(const ConvGeometry& g, const PixelPosition& at, int i) {
    const int y = at.p * g.stride_y - g.pad_y;
    const int x = at.q * g.stride_x - g.pad_x;
    base[i] += at.n * g.stride_n + y * g.stride_h + x * g.stride_w;
    for (int r = 0; r < g.R; ++r) {
      if (static_cast<unsigned>(y + r * g.dilation_y) < static_cast<unsigned>(g.H)) mask[i] |= 1u << r;
    }
    for (int s = 0; s < g.S; ++s) {
      if (static_cast<unsigned>(x + s * g.dilation_x) < static_cast<unsigned>(g.W)) mask[i] |= 0x10000u << s;
    }
  }
};

// Copies 16 bytes at a time: channels are multiples of 8, pixels begin at multiples of 16 bytes.
template <typename Tile, typename T>
struct VectorLoader {
  LeftRows<Tile> rows;
  TapCursor cursor;
  uint32_t offset;

  template <typename Locate>
  IK_DEVICE VectorLoader(const ConvGeometry& g, int thread, Locate locate)
      : rows(g, thread, locate),
        cursor(g, thread % kStepVectors),
        offset(stage_offset(thread / kStepVectors, thread % kStepVectors)) {}

  IK_DEVICE void fetch(const ConvGeometry& g, uint32_t stage) {
#pragma unroll
    for (int i = 0; i < LeftRows<Tile>::kCount; ++i) {
      const bool inside = (rows.mask[i] & cursor.bits) == cursor.bits;
      cp_async16(stage + offset + i * LeftRows<Tile>::kThreadsPerVector * kStepBytes, rows.base[i] + cursor.bytes,
                 inside ? kVectorBytes : 0);
    }
    cursor.advance(g);
  }
  IK_DEVICE void store(uint32_t) {}
};

// Collects vectors element by element through registers: fetch before a stage's product, store after it. Only the first
// kChannels elements of a vector may be channels.
template <typename Tile, typename T, int kChannels = kVectorBytes / sizeof(T)>
struct ElementLoader {
  static constexpr int kElements = kVectorBytes / sizeof(T);
  LeftRows<Tile> rows;
  TapCursor cursor;
  uint32_t offset;
  uint4 vectors[LeftRows<Tile>::kCount];

  template <typename Locate>
  IK_DEVICE ElementLoader(const ConvGeometry& g, int thread, Locate locate)
      : rows(g, thread, locate),
        cursor(g, thread % kStepVectors),
        offset(stage_offset(thread / kStepVectors, thread % kStepVectors)) {}

  IK_DEVICE void fetch(const ConvGeometry& g, uint32_t) {
    const int channels = g.C - cursor.v * kElements;
#pragma unroll
    for (int i = 0; i < LeftRows<Tile>::kCount; ++i) {
      const bool inside = (rows.mask[i] & cursor.bits) == cursor.bits;
      vectors[i] = collect(rows.base[i] + cursor.bytes, inside ? channels : 0);
    }
    cursor.advance(g);
  }

  IK_DEVICE void store(uint32_t stage) {
#pragma unroll
    for (int i = 0; i < LeftRows<Tile>::kCount; ++i) {
      sts128(stage + offset + i * LeftRows<Tile>::kThreadsPerVector * kStepBytes, vectors[i]);
    }
  }

 private:
  static IK_DEVICE uint4 collect(const char* from, int channels) {
    if constexpr (sizeof(T) == 4) {
      const uint32_t* elements = reinterpret_cast<const uint32_t*>(from);
      return make_uint4(element<0>(elements, channels), element<1>(elements, channels), element<2>(elements, channels),
                        element<3>(elements, channels));
    } else {
      const uint16_t* elements = reinterpret_cast<const uint16_t*>(from);
      return make_uint4(pair<0>(elements, channels), pair<2>(elements, channels), pair<4>(elements, channels),
                        pair<6>(elements, channels));
    }
  }
  template <int i, typename Bits>
  static IK_DEVICE uint32_t element(const Bits* elements, int channels) {
    if constexpr (i < kChannels) {
      return i < channels ? elements[i] : 0;
    } else {
      return 0;
    }
  }
  template <int i>
  static IK_DEVICE uint32_t pair(const uint16_t* elements, int channels) {
    return element<i>(elements, channels) | element<i + 1>(elements, channels) << 16;
  }
};

// The packed weight: rows are output channels, vectors follow one another through all taps.
template <typename Tile>
struct WeightLoader {
  static constexpr int kThreadsPerVector = Tile::kThreads / kStepVectors;
  static constexpr int kCount = Tile::kColumns / kThreadsPerVector;
  const char* base;
  int64_t rows_bytes;  // from one of the thread's rows to the next
  int rows;            // of the thread's rows inside K
  int vectors;         // left in the row
  uint32_t offset;

  IK_DEVICE WeightLoader(const ConvGeometry& g, int first_column, int thread)
      : offset(stage_offset(thread / kStepVectors, thread % kStepVectors)) {
    const int64_t row_bytes = static_cast<int64_t>(g.row_vectors) * kVectorBytes;
    const int column = first_column + thread / kStepVectors;
    base = static_cast<const char*>(g.weight) + column * row_bytes + thread % kStepVectors * kVectorBytes;
    rows_bytes = kThreadsPerVector * row_bytes;
    rows = (g.K - column + kThreadsPerVector - 1) / kThreadsPerVector;
    vectors = g.row_vectors - thread % kStepVectors;
  }

  IK_DEVICE void fetch(uint32_t stage) {
    const char* from = base;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool inside = i < rows && vectors > 0;
      cp_async16(stage + offset + i * kThreadsPerVector * kStepBytes, from, inside ? kVectorBytes : 0);
      from += rows_bytes;
    }
    base += kStepBytes;
    vectors -= kStepVectors;
  }
};

}  // namespace ik::cuda
