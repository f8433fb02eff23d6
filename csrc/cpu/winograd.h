// Dense 3 x 3 convolutions of stride 1 by Winograd's F(2 x 2, 3 x 3) (Lavin and Gray 2016, section 4.1): a block of
// 2 x 2 outputs is 16 products over the channels instead of 36. With 1D F(2, 3) in both directions,
//   y0 = m0 + m1 + m2       m0 = (d0 - d2) g0        m1 = (d1 + d2) (g0 + g1 + g2) / 2
//   y1 = m1 - m2 - m3       m3 = (d1 - d3) g2        m2 = (d2 - d1) (g0 - g1 + g2) / 2
// the same 16 products of gemm.h for all blocks of a tile: A are transformed inputs, B transformed weights.
// Differences of infinities are no numbers: outputs that are not finite are computed again by the definition, so that
// an infinite input has the effect that it should have.
//
#pragma once
#include <type_traits>

#include "cpu/gemm.h"
#include "cpu/pack_columns.h"
#include "cpu/scratch.h"

namespace ik::cpu::IK_ISA {

// The blocks of an image, and how they are cut into row panels, which depends on the geometry alone. Blocks begin at
// even output rows and columns of the whole image, so that a band of rows has the bits of the whole.
struct WinogradBlocks {
  int64_t phase;          // 1: the first row of blocks begins one row above the band
  int64_t lines, length;  // blocks of an image, down and across
  int64_t panels;         // row panels of an image

  WinogradBlocks(const Geometry& g, int64_t most_rows)
      : phase(g.first_p % 2),
        lines(ceil_div(g.P + phase, 2)),
        length(ceil_div(g.Q, 2)),
        panels(ceil_div(lines * length, most_rows)) {}
  int64_t begin(int64_t panel) const { return lines * length * panel / panels; }
};

template <typename T>
class Winograd {
 public:
  using A = Accum<T>;
  static constexpr int64_t kMR = Gemm<A>::kMR, kNR = Gemm<A>::kNR, kLanes = Vec<A>::kLanes, kNV = Gemm<A>::kNV;
  static constexpr int64_t kProducts = 16;
  // The sums of a product come to weigh more than its terms: their error must be smaller than a convolution's.
  static constexpr int64_t kShortChain = 48;

  // float64 asks for accuracy. Few channels leave too little between the transforms, and transformed weights beyond a
  // core's share of the cache cost more than the products saved.
  static bool applies(const Geometry& g) {
    return std::is_same_v<A, float> && g.R == 3 && g.S == 3 && g.stride_h == 1 && g.stride_w == 1 &&
           g.dilation_h == 1 && g.dilation_w == 1 && g.C >= 16 && g.K >= 16 && g.C * g.K <= 1 << 16;
  }

  // [panel of kNR columns][product][C][kNR]
  static size_t weight_bytes(const Geometry& g) {
    return static_cast<size_t>(round_up(g.K, kNR) * kProducts * g.C) * sizeof(A);
  }
  static void pack(const Geometry& g, const WeightView& w, void* packed, int64_t panel_begin, int64_t panel_end) {
    A* const taps = static_cast<A*>(scratch(Scratch::kTaps, static_cast<size_t>(9 * g.C * kNR) * sizeof(A)));
    const int64_t product = g.C * kNR;
    for (int64_t q = panel_begin; q < panel_end; q++) {
      pack_columns<T>(g, w, q * kNR, taps);
      A* const out = static_cast<A*>(packed) + q * kProducts * product;
      for (int64_t i = 0; i < product; i += kLanes) {
        Vec<A> half[4][3];
        for (int s = 0; s < 3; s++) {
          Vec<A> column[4];
          transform_taps(load(taps + s * product + i), load(taps + (3 + s) * product + i),
                         load(taps + (6 + s) * product + i), column);
          for (int a = 0; a < 4; a++) half[a][s] = column[a];
        }
        for (int a = 0; a < 4; a++) {
          Vec<A> row[4];
          transform_taps(half[a][0], half[a][1], half[a][2], row);
          for (int b = 0; b < 4; b++) store(out + (4 * a + b) * product + i, row[b]);
        }
      }
    }
  }

  static int64_t rows(const Geometry& g) { return g.N * WinogradBlocks(g, kMR).panels * kMR; }
  // Transformed inputs for a panel of B to be worth reading, of about the size that L2 holds beside it.
  static int64_t tile_rows(const Geometry& g, int64_t tile_bytes) {
    const int64_t row_bytes = kProducts * (g.C + kNR) * static_cast<int64_t>(sizeof(A));
    return larger(4, smaller(16, tile_bytes / row_bytes / kMR)) * kMR;
  }
  static void tile(const ConvTask& task, const Tile& part) { Winograd(task, part).run(); }

 private:
  Winograd(const ConvTask& task, const Tile& part)
      : t_(task),
        g_(task.geometry),
        blocks_(g_, kMR),
        tile_{part.row_begin / kMR, part.row_end / kMR, part.panel_begin, part.panel_end},
        pitch_(round_up(g_.C, kLanes)) {}

  static void transform_taps(Vec<A> g0, Vec<A> g1, Vec<A> g2, Vec<A>* out) {
    const Vec<A> half = broadcast(A(0.5)), outer = g0 + g2;
    out[0] = g0;
    out[1] = half * (outer + g1);
    out[2] = half * (outer - g1);
    out[3] = g2;
  }

  void run() {
    const int64_t count = tile_.row_end - tile_.row_begin, panel_elements = kProducts * kMR * pitch_;
    A* const inputs = static_cast<A*>(scratch(Scratch::kTile, static_cast<size_t>(count * panel_elements) * sizeof(A)));
    for (int64_t i = 0; i < count; i++) transform_inputs(tile_.row_begin + i, inputs + i * panel_elements);

    const Chains chains(g_.C, kShortChain);
    alignas(64) A products[kProducts * kMR * kNR];
    ColumnPanel<T> panel{};
    panel.segments = chains.segments;
    panel.pitch = pitch_;
    panel.updates = 1;
    RowPanel<A> rows{};
    rows.segment_end = chains.count;
    constexpr std::make_integer_sequence<int, kMR> kAllRows{};
    for (int64_t q = tile_.panel_begin; q < tile_.panel_end; q++) {
      const A* const weight = static_cast<const A*>(t_.weight) + q * kProducts * g_.C * kNR;
      const int64_t columns = smaller(kNR, g_.K - q * kNR);
      for (int64_t i = 0; i < count; i++) {
        const int64_t index = (tile_.row_begin + i) % blocks_.panels;
        rows.rows = static_cast<int>(blocks_.begin(index + 1) - blocks_.begin(index));
        const MicroKernel<T> kernel = columns > kLanes ? pick_micro_kernel<T, 2>(rows.rows, kAllRows)
                                                       : pick_micro_kernel<T, 1>(rows.rows, kAllRows);
        for (int64_t product = 0; product < kProducts; product++) {
          rows.a = inputs + i * panel_elements + product * kMR * pitch_;
          panel.b = weight + product * g_.C * kNR;
          panel.sums = products + product * kMR * kNR;
          panel.update[0] = {panel.sums, false, false};
          kernel(panel, rows);
        }
        transform_outputs(tile_.row_begin + i, q * kNR, columns, products, weight);
      }
    }
  }

  // The blocks of row panel `panel` (numbered through all images) to out[product][kMR][pitch].
  void transform_inputs(int64_t panel, A* out) const {
    alignas(64) static constexpr T kZeros[kLanes] = {};
    const int64_t n = panel / blocks_.panels, index = panel % blocks_.panels;
    const int64_t begin = blocks_.begin(index), end = blocks_.begin(index + 1);
    for (int64_t block = begin; block < end;) {
      const int64_t line = block / blocks_.length, across = block % blocks_.length;
      const int64_t count = smaller(end - block, blocks_.length - across);
      const int64_t top = 2 * line - blocks_.phase - g_.pad_h, left = 2 * across - g_.pad_w;
      const T* from[4];
      int64_t step[4];
      for (int r = 0; r < 4; r++) {
        const bool inside = top + r >= 0 && top + r < g_.H;
        from[r] = inside ? static_cast<const T*>(t_.x.data) + n * t_.x.stride_n + (top + r) * t_.x.stride_h : kZeros;
        step[r] = inside ? t_.x.stride_w : 0;
      }
      for (int64_t c = 0; c < g_.C; c += kLanes) {
        const int lanes = static_cast<int>(smaller(kLanes, g_.C - c));
        A* to = out + (block - begin) * pitch_ + c;
        const auto column = [&](int64_t w, Vec<A>* u) __attribute__((always_inline)) {
          Vec<A> d[4];
          if (w >= 0 && w < g_.W) {
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
              const T* pixel = from[r] + (step[r] ? w * step[r] + c : 0);
              d[r] = lanes == kLanes ? load(pixel) : load(pixel, lanes);
            }
          } else {
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) d[r] = broadcast(A(0));
          }
          transform_pixels(d, u);
        };
        Vec<A> u[4][4];  // [column of the block][product down]
        column(left, u[0]);
        column(left + 1, u[1]);
        for (int64_t j = 0; j < count; j++, to += pitch_) {
          column(left + 2 * j + 2, u[2]);
          column(left + 2 * j + 3, u[3]);
#pragma GCC unroll 4
          for (int a = 0; a < 4; a++) {
            const Vec<A> across_block[4] = {u[0][a], u[1][a], u[2][a], u[3][a]};
            Vec<A> v[4];
            transform_pixels(across_block, v);
#pragma GCC unroll 4
            for (int b = 0; b < 4; b++) store(to + (4 * a + b) * kMR * pitch_, v[b]);
            u[0][a] = u[2][a];
            u[1][a] = u[3][a];
          }
        }
      }
      block += count;
    }
  }

  static void transform_pixels(const Vec<A>* d, Vec<A>* out) {
    out[0] = d[0] - d[2];
    out[1] = d[1] + d[2];
    out[2] = d[2] - d[1];
    out[3] = d[1] - d[3];
  }

  // products[product][kMR][kNR] of row panel `panel` to its outputs' columns from `column` on.
  void transform_outputs(int64_t panel, int64_t column, int64_t columns, const A* products, const A* weight) const {
    const Epilogue& e = t_.epilogue;
    const int64_t n = panel / blocks_.panels, index = panel % blocks_.panels;
    const int64_t begin = blocks_.begin(index), end = blocks_.begin(index + 1);
    for (int64_t v = 0; v < columns; v += kLanes) {
      const int lanes = static_cast<int>(smaller(kLanes, columns - v));
      const int64_t k = column + v;
      const Vec<A> scale = e.scale ? load(static_cast<const A*>(e.scale) + k, lanes) : broadcast(A(1));
      const Vec<A> shift = e.shift ? load(static_cast<const A*>(e.shift) + k, lanes) : broadcast(A(0));
      const bool affine = e.scale || e.shift;
      for (int64_t block = begin; block < end; block++) {
        const A* const m = products + (block - begin) * kNR + v;
        Vec<A> down[2][4], y[2][2];
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) {
          const auto at = [&](int a) { return load(m + (4 * a + b) * kMR * kNR); };
          const Vec<A> m1 = at(1), m2 = at(2);
          down[0][b] = at(0) + m1 + m2;
          down[1][b] = m1 - m2 - at(3);
        }
#pragma GCC unroll 2
        for (int r = 0; r < 2; r++) {
          y[r][0] = down[r][0] + down[r][1] + down[r][2];
          y[r][1] = down[r][1] - down[r][2] - down[r][3];
        }
        const int64_t p = block / blocks_.length * 2 - blocks_.phase, q = block % blocks_.length * 2;
        if (not_finite(y[0][0] + y[0][1] + y[1][0] + y[1][1])) by_definition(n, p, q, weight + v, y);
#pragma GCC unroll 2
        for (int r = 0; r < 2; r++) {
          if (p + r < 0 || p + r >= g_.P) continue;
#pragma GCC unroll 2
          for (int s = 0; s < 2; s++) {
            if (q + s >= g_.Q) continue;
            Vec<A> value = affine ? fmadd(y[r][s], scale, shift) : y[r][s];
            if (e.residual.data) value = value + load_at(e.residual, n, p + r, q + s, k, lanes);
            value = activate(e.activation, value);
            T* const to =
                static_cast<T*>(e.y.data) + n * e.y.stride_n + (p + r) * e.y.stride_h + (q + s) * e.y.stride_w + k;
            if (lanes == kLanes)
              store(to, value);
            else
              store(to, value, lanes);
          }
        }
      }
    }
  }

  // Those of the block of outputs at (p, q) that are not finite, from the transformed weights of kLanes columns.
  void by_definition(int64_t n, int64_t p, int64_t q, const A* weight, Vec<A> (*y)[2]) const {
    const auto tap = [&](int64_t r, int64_t s, int64_t c) {
      const auto at = [&](int64_t a, int64_t b) { return load(weight + ((4 * a + b) * g_.C + c) * kNR); };
      const auto across = [&](int64_t a) { return s == 1 ? at(a, 1) - at(a, 2) : at(a, s == 0 ? 0 : 3); };
      return r == 1 ? across(1) - across(2) : across(r == 0 ? 0 : 3);
    };
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 2; j++) {
        if (!not_finite(y[i][j])) continue;
        y[i][j] = broadcast(A(0));
        for (int64_t r = 0; r < 3; r++)
          for (int64_t s = 0; s < 3; s++) {
            const int64_t h = p + i + r - g_.pad_h, w = q + j + s - g_.pad_w;
            if (h < 0 || h >= g_.H || w < 0 || w >= g_.W) continue;
            const T* const from =
                static_cast<const T*>(t_.x.data) + n * t_.x.stride_n + h * t_.x.stride_h + w * t_.x.stride_w;
            for (int64_t c = 0; c < g_.C; c++)
              y[i][j] = fmadd(broadcast(static_cast<A>(to_accum(from[c]))), tap(r, s, c), y[i][j]);
          }
      }
  }

  static Vec<A> load_at(const NhwcInput& x, int64_t n, int64_t p, int64_t q, int64_t k, int lanes) {
    const T* from = static_cast<const T*>(x.data) + n * x.stride_n + p * x.stride_h + q * x.stride_w + k;
    return lanes == kLanes ? load(from) : load(from, lanes);
  }

  const ConvTask& t_;
  const Geometry& g_;
  const WinogradBlocks blocks_;
  const Tile tile_;  // rows in row panels
  const int64_t pitch_;
};

}  // namespace ik::cpu::IK_ISA
