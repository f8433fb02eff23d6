// Producers of A for the AMX product, in bf16: im2col and the depthwise convolution write packed panels
// [panel of 32 rows][block of 32 k][32 rows][32 k]; the padded strip is read by shifted tile loads.
#pragma once
#include "cpu/amx/tiles.h"

namespace ik::cpu::amx {

inline __m512i load_bits(const Bf16* from, __mmask32 mask) { return _mm512_maskz_loadu_epi16(mask, from); }

// Writes one packed row from left to right. A block is put together in a register by loads whose masked lanes lie
// before the source or behind it, and stored once.
class RowWriter {
 public:
  explicit RowWriter(char* row) : to_(row) {}
  void copy(const Bf16* from, int64_t n) {
    while (n > 0) {
      const int64_t count = smaller(kDepth - within_, n);
      block_ = _mm512_or_si512(block_, load_bits(from - within_, mask32(count) << within_));
      from += count;
      n -= count;
      advance(count);
    }
  }
  void zero(int64_t n) {
    while (n > 0) {
      const int64_t count = smaller(kDepth - within_, n);
      n -= count;
      advance(count);
    }
  }
  void finish_block() {
    if (within_ > 0) advance(kDepth - within_);
  }

 private:
  void advance(int64_t count) {
    within_ += count;
    if (within_ < kDepth) return;
    _mm512_storeu_si512(to_, block_);
    block_ = _mm512_setzero_si512();
    within_ = 0;
    to_ += kBlockBytes;
  }

  char* to_;
  __m512i block_ = _mm512_setzero_si512();
  int64_t within_ = 0;
};

// Where an output row of the product reads; n < 0: no output pixel.
struct Pixel {
  int64_t n, p, q;
};

// Walks the output pixels row by row, image by image, from output pixel number `row`.
class PixelCursor {
 public:
  PixelCursor(const Geometry& g, int64_t row) : P_(g.P), Q_(g.Q), at_{row / (g.P * g.Q), row / g.Q % g.P, row % g.Q} {}
  const Pixel& pixel() const { return at_; }
  void advance() {
    if (++at_.q < Q_) return;
    at_.q = 0;
    if (++at_.p < P_) return;
    at_.p = 0;
    at_.n++;
  }

 private:
  int64_t P_, Q_;
  Pixel at_;
};

// One row of im2col: R groups of S * C elements when `grouped` (each padded to whole blocks), else one of R * S * C.
inline void im2col_row(const Geometry& g, const NhwcInput& x, Pixel at, bool grouped, char* row) {
  const int64_t run = g.S * g.C, left = at.q * g.stride_w - g.pad_w;
  const bool contiguous = g.dilation_w == 1 && x.stride_w == g.C;
  RowWriter out(row);
  for (int64_t r = 0; r < g.R; r++) {
    const int64_t h = at.p * g.stride_h - g.pad_h + r * g.dilation_h;
    if (at.n < 0 || h < 0 || h >= g.H) {
      out.zero(run);
    } else {
      const Bf16* line = static_cast<const Bf16*>(x.data) + at.n * x.stride_n + h * x.stride_h;
      if (contiguous) {
        const int64_t begin = smaller(g.S, larger(0, -left)), end = larger(begin, smaller(g.S, g.W - left));
        out.zero(begin * g.C);
        if (end > begin) out.copy(line + (left + begin) * g.C, (end - begin) * g.C);
        out.zero((g.S - end) * g.C);
      } else {
        for (int64_t s = 0; s < g.S; s++) {
          const int64_t w = left + s * g.dilation_w;
          if (w < 0 || w >= g.W)
            out.zero(g.C);
          else
            out.copy(line + w * x.stride_w, g.C);
        }
      }
    }
    if (grouped || r == g.R - 1) out.finish_block();
  }
}

// Positions of a convolution with stride 1 over images padded on the left and on top only: the padding after one row or
// image is that before the next. Output pixel and input position differ by a constant for every tap.
struct Flat {
  int64_t row, image;  // positions per row and per image
  explicit Flat(const Geometry& g)
      : row(pitch(g.W, g.Q, (g.S - 1) * g.dilation_w, g.pad_w)),
        image(row * pitch(g.H, g.P, (g.R - 1) * g.dilation_h, g.pad_h)) {}
  // What the last output reads past the end must be padding of the next row or image, even where the window reaches
  // further to the right than to the left, as the residues of a strided convolution's gradient do.
  static int64_t pitch(int64_t size, int64_t outputs, int64_t reach, int64_t pad) {
    return larger(larger(size + pad, outputs), outputs + reach - larger(pad, 0));
  }
  int64_t positions(const Geometry& g) const { return (g.N - 1) * image + (g.P - 1) * row + g.Q; }
};

// Walks positions; those that are no output pixel have n < 0.
class FlatCursor {
 public:
  FlatCursor(const Geometry& g, const Flat& flat, int64_t position)
      : N_(g.N),
        P_(g.P),
        Q_(g.Q),
        rows_(flat.image / flat.row),
        columns_(flat.row),
        at_{position / flat.image, position % flat.image / flat.row, position % flat.row} {}
  Pixel pixel() const { return at_.n < N_ && at_.p < P_ && at_.q < Q_ ? at_ : Pixel{-1, 0, 0}; }
  void advance() {
    if (++at_.q < columns_) return;
    at_.q = 0;
    if (++at_.p < rows_) return;
    at_.p = 0;
    at_.n++;
  }

 private:
  int64_t N_, P_, Q_, rows_, columns_;
  Pixel at_;
};

// Copies positions [begin, end) of the padded images. True if `check` and a value is infinite or NaN.
inline bool copy_strip(const Geometry& g, const Flat& flat, const NhwcInput& x, int64_t begin, int64_t end, bool check,
                       Bf16* strip) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 special = 0;
  const auto copy = [&](const Bf16* from, int64_t elements) {
    int64_t i = 0;
    for (; i + 32 <= elements; i += 32) {
      const __m512i bits = _mm512_loadu_si512(from + i);
      _mm512_storeu_si512(strip + i, bits);
      if (check) special |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(bits, exponent), exponent);
    }
    if (i < elements) {
      const __mmask32 mask = mask32(elements - i);
      const __m512i bits = load_bits(from + i, mask);
      _mm512_mask_storeu_epi16(strip + i, mask, bits);
      if (check) special |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(bits, exponent), exponent);
    }
    strip += elements;
  };
  const auto clear = [&](int64_t elements) {
    std::memset(strip, 0, static_cast<size_t>(elements) * 2);
    strip += elements;
  };
  for (int64_t position = begin; position < end;) {
    const int64_t n = position / flat.image, h = position % flat.image / flat.row - g.pad_h;
    const int64_t w = position % flat.row - g.pad_w, left = smaller(end - position, flat.row - position % flat.row);
    if (n >= g.N || h < 0 || h >= g.H || w >= g.W) {
      clear(left * g.C);
      position += left;
    } else if (w < 0) {
      const int64_t count = smaller(left, -w);
      clear(count * g.C);
      position += count;
    } else {
      const int64_t count = smaller(left, g.W - w);
      const Bf16* from = static_cast<const Bf16*>(x.data) + n * x.stride_n + h * x.stride_h + w * x.stride_w;
      if (x.stride_w == g.C)
        copy(from, count * g.C);
      else
        for (int64_t i = 0; i < count; i++) copy(from + i * x.stride_w, g.C);
      position += count;
    }
  }
  return special != 0;
}

}  // namespace ik::cpu::amx
