// Dense convolutions of stride 1 by Winograd's algorithm (Lavin and Gray 2016), Down and Across of the window
// (cook_toom.h): a block of Down::kOutputs x Across::kOutputs outputs is Down::kProducts x Across::kProducts products
// over the channels. These are products of gemm.h in the accumulation type, for all blocks of a tile: A are transformed
// inputs, B transformed weights. Differences of infinities are no numbers: outputs that are not finite are computed
// again by the definition, so that an infinite input has the effect that it should have.
//
#pragma once
#include <type_traits>

#include "cpu/cook_toom.h"
#include "cpu/gemm.h"
#include "cpu/pack_columns.h"
#include "cpu/scratch.h"

namespace ik::cpu::IK_ISA {

// The blocks of an image, and how they are cut into row panels, which depends on the geometry alone. Blocks begin at
// multiples of their height in the whole image, wherever a band of rows begins.
struct WinogradBlocks {
  int64_t phase;          // rows of the first line of blocks that lie above the band
  int64_t lines, length;  // blocks of an image, down and across
  int64_t panels;         // row panels of an image: an even number, which two threads share fairly

  WinogradBlocks(const Geometry& g, int64_t height, int64_t width, int64_t most_rows)
      : phase(g.first_p % height),
        lines(ceil_div(g.P + phase, height)),
        length(ceil_div(g.Q, width)),
        panels(smaller(round_up(ceil_div(lines * length, most_rows), 2), lines * length)) {}
  int64_t begin(int64_t panel) const { return lines * length * panel / panels; }
};

// Vectors for CookToom, in which the compiler knows all factors.
template <typename A>
struct VecOps {
  using V = Vec<A>;
  static V times(V x, double factor) { return factor == 1 ? x : x * broadcast(A(factor)); }
  static V add(V sum, V x, double factor) {
    return factor == 1 ? sum + x : factor == -1 ? sum - x : fmadd(x, broadcast(A(factor)), sum);
  }
};

template <typename T, typename Down, typename Across, int64_t kMostWeights, int64_t kLeastChannels = 16,
          int64_t kMostChannels = kMostWeights>
class Winograd {
 public:
  using A = Accum<T>;
  using Ops = VecOps<A>;
  static constexpr int64_t kMR = Gemm<A>::kMR, kNR = Gemm<A>::kNR, kLanes = Vec<A>::kLanes;
  static constexpr int kHeight = Down::kOutputs, kWidth = Across::kOutputs;  // of a block
  static constexpr int kLines = Down::kProducts, kColumns = Across::kProducts;
  static constexpr int64_t kProducts = kLines * kColumns;
  // The sums of a product come to weigh more than its terms, in large blocks much more: their error must be smaller
  // than a convolution's, unless storage rounds more than they lose.
  static constexpr bool kLarge = Down::kProducts > 4 || Across::kProducts > 4;
  static constexpr int64_t kLongestChain = !std::is_same_v<T, A> ? kChain : kLarge ? 24 : 48;

  // float64 asks for accuracy. Few channels leave too little between the transforms, and transformed weights beyond a
  // core's share of the cache cost more than the products saved.
  static bool applies(const Geometry& g) {
    return std::is_same_v<A, float> && fits<Down>(g.R, g.stride_h, g.dilation_h) &&
           fits<Across>(g.S, g.stride_w, g.dilation_w) && g.C >= kLeastChannels && g.C <= kMostChannels && g.K >= 16 &&
           g.C * g.K <= kMostWeights;
  }

  // [panel of kNR columns][product][C][kNR]
  static size_t weight_bytes(const Geometry& g) {
    return static_cast<size_t>(ceil_div(g.K, kNR) * kProducts * product_of(g)) * sizeof(A);
  }
  static void pack(const Geometry& g, const WeightView& w, void* packed, int64_t panel_begin, int64_t panel_end) {
    using O = Operand<T>;
    const int64_t tap = operands<T>(g.C) * kNR, product = product_of(g);
    O* const taps = static_cast<O*>(scratch(Scratch::kTaps, static_cast<size_t>(g.R * g.S * tap) * sizeof(O)));
    for (int64_t q = panel_begin; q < panel_end; q++) {
      pack_columns<T>(g, w, q * kNR, taps);
      A* const out = static_cast<A*>(packed) + q * kProducts * product;
      for (int64_t c = 0; c < g.C; c++)
        for (int64_t v = 0; v < kNR; v += kLanes) {
          const auto at = [&](int r, int s) { return load_channel<T>(taps + (r * Across::kTaps + s) * tap + v, c); };
          transform_taps(at, out + c * kNR + v, product);
        }
    }
  }

  // The taps of panel q of packed weights again, but for a rounding error or two: body(c, v, taps) for every channel
  // and vector of columns, with taps[Down::kTaps][Across::kTaps].
  template <typename Body>
  static void for_taps(const Geometry& g, const void* packed, int64_t q, const Body& body) {
    constexpr int64_t kAheadChannels = 8;
    const int64_t product = product_of(g);
    for (int64_t c = 0; c < g.C; c++)
      for (int64_t v = 0; v < kNR; v += kLanes) {
        const A* const from = static_cast<const A*>(packed) + q * kProducts * product + c * kNR + v;
        // More streams than the hardware follows.
        for (int64_t i = 0; i < kProducts; i++) __builtin_prefetch(from + i * product + kAheadChannels * kNR);
        Vec<A> taps[Down::kTaps][Across::kTaps];
        restore_taps(from, product, taps);
        body(c, v, taps);
      }
  }
  // As pack_columns writes them.
  static void restore(const Geometry& g, const void* packed, int64_t q, A* out) {
    for_taps(g, packed, q, [&](int64_t c, int64_t v, const auto& taps) {
      for (int r = 0; r < Down::kTaps; r++)
        for (int s = 0; s < Across::kTaps; s++) store(out + ((r * Across::kTaps + s) * g.C + c) * kNR + v, taps[r][s]);
    });
  }

  static int64_t rows(const Geometry& g) { return g.N * WinogradBlocks(g, kHeight, kWidth, kMR).panels * kMR; }
  // Transformed inputs for a panel of B to be worth reading, of about the size that L2 holds beside it.
  static int64_t tile_rows(const Geometry& g, int64_t tile_bytes) {
    constexpr int64_t kLeast = kProducts > 16 ? 2 : 4, kMost = 16;
    const int64_t row_bytes = kProducts * (g.C + kNR) * static_cast<int64_t>(sizeof(A));
    return larger(kLeast, smaller(kMost, tile_bytes / row_bytes / kMR)) * kMR;
  }
  // Transformed inputs that share L2 with a panel of B, and rows enough for what every thread packs by itself.
  static bool packs_panels(const Geometry& g, int64_t tile_rows) {
    constexpr int64_t kInputBytes = 640 << 10;
    return tile_rows >= 2 * kMR && tile_rows * kProducts * g.C * static_cast<int64_t>(sizeof(A)) <= kInputBytes;
  }
  static void tile(const ConvTask& task, const Tile& part) {
    const Winograd winograd(task, part);
    const int64_t elements = kProducts * product_of(task.geometry);
    if (!task.unpacked)
      return winograd.run([&](int64_t q) { return static_cast<const A*>(task.weight) + q * elements; });
    A* const packed = static_cast<A*>(scratch(Scratch::kPacked, static_cast<size_t>(elements) * sizeof(A)));
    winograd.run([&](int64_t q) {
      pack(task.geometry, *task.unpacked, packed - q * elements, q, q + 1);  // panel 0 would lie there
      return packed;
    });
  }
  // With weights that are packed for another way's blocks.
  template <typename Other>
  static void restored_tile(const ConvTask& task, const Tile& part) {
    const Geometry& g = task.geometry;
    const int64_t product = product_of(g);
    A* const packed = static_cast<A*>(scratch(Scratch::kPacked, static_cast<size_t>(kProducts * product) * sizeof(A)));
    Winograd(task, part).run([&](int64_t q) {
      Other::for_taps(g, task.weight, q, [&](int64_t c, int64_t v, const auto& taps) {
        transform_taps([&](int r, int s) { return taps[r][s]; }, packed + c * kNR + v, product);
      });
      return packed;
    });
  }

 private:
  template <typename Direction>
  static bool fits(int64_t window, int64_t stride, int64_t dilation) {
    return window == Direction::kTaps && stride == 1 && (window == 1 || dilation == 1);
  }

  // Elements of a product's weights. An odd number of rows, or those of all products would share sets of the caches.
  static int64_t product_of(const Geometry& g) { return (g.C | 1) * kNR; }

  // The window at(r, s) of one channel and kLanes columns to products that are `product` elements apart.
  template <typename At>
  [[gnu::always_inline]] static void transform_taps(const At& at, A* out, int64_t product) {
    Vec<A> down[Across::kTaps][kLines];
    for (int s = 0; s < Across::kTaps; s++) {
      Vec<A> column[Down::kTaps];
      for (int r = 0; r < Down::kTaps; r++) column[r] = at(r, s);
      Down::template taps<Ops>(column, down[s]);
    }
    for (int a = 0; a < kLines; a++) {
      Vec<A> row[Across::kTaps], across[kColumns];
      for (int s = 0; s < Across::kTaps; s++) row[s] = down[s][a];
      Across::template taps<Ops>(row, across);
      for (int b = 0; b < kColumns; b++) store(out + (kColumns * a + b) * product, across[b]);
    }
  }
  // The reverse.
  static void restore_taps(const A* transformed, int64_t product, Vec<A> (*taps)[Across::kTaps]) {
    Vec<A> down[Down::kTaps][kColumns];
#pragma GCC unroll 12
    for (int b = 0; b < kColumns; b++)
#pragma GCC unroll 7
      for (int r = 0; r < Down::kTaps; r++)
        down[r][b] =
            Down::template tap<Ops>(r, [&](int a) { return load(transformed + (kColumns * a + b) * product); });
#pragma GCC unroll 7
    for (int r = 0; r < Down::kTaps; r++)
#pragma GCC unroll 7
      for (int s = 0; s < Across::kTaps; s++)
        taps[r][s] = Across::template tap<Ops>(s, [&](int b) { return down[r][b]; });
  }

  Winograd(const ConvTask& task, const Tile& part)
      : t_(task),
        g_(task.geometry),
        blocks_(g_, kHeight, kWidth, kMR),
        tile_{part.row_begin / kMR, part.row_end / kMR, part.panel_begin, part.panel_end},
        pitch_(round_up(g_.C, kLanes)),
        product_inputs_(kMR * pitch_ + kLanes) {}

  // Where the weights of panel q lie is said by weight_of(q).
  template <typename WeightOf>
  void run(const WeightOf& weight_of) const {
    const int64_t count = tile_.row_end - tile_.row_begin, panel_elements = kProducts * product_inputs_;
    A* const inputs = static_cast<A*>(scratch(Scratch::kTile, static_cast<size_t>(count * panel_elements) * sizeof(A)));
    for (int64_t i = 0; i < count; i++) transform_inputs(tile_.row_begin + i, inputs + i * panel_elements);

    const Chains chains(g_.C, kLongestChain);
    A* const products =
        static_cast<A*>(scratch(Scratch::kCombined, static_cast<size_t>(kProducts * kMR * kNR) * sizeof(A)));
    ColumnPanel<A> panel{};
    panel.segments = chains.segments;
    panel.pitch = pitch_;
    panel.updates = 1;
    RowPanel<A> rows{};
    rows.segment_end = chains.count;
    constexpr std::make_integer_sequence<int, kMR> kAllRows{};
    for (int64_t q = tile_.panel_begin; q < tile_.panel_end; q++) {
      const A* const weight = weight_of(q);
      const int64_t columns = smaller(kNR, g_.K - q * kNR);
      for (int64_t i = 0; i < count; i++) {
        const int64_t index = (tile_.row_begin + i) % blocks_.panels;
        rows.rows = static_cast<int>(blocks_.begin(index + 1) - blocks_.begin(index));
        const MicroKernel<A> kernel = columns > kLanes ? pick_micro_kernel<A, 2>(rows.rows, kAllRows)
                                                       : pick_micro_kernel<A, 1>(rows.rows, kAllRows);
        for (int64_t product = 0; product < kProducts; product++) {
          rows.a = inputs + i * panel_elements + product * product_inputs_;
          panel.b = weight + product * product_of(g_);
          panel.sums = products + product * kMR * kNR;
          panel.update[0] = {panel.sums, false, false};
          kernel(panel, rows);
        }
        transform_outputs(tile_.row_begin + i, q * kNR, columns, products, weight);
      }
    }
  }

  // The blocks of row panel `panel` (numbered through all images) to out[product][kMR][pitch], a product's rows
  // followed by one more vector.
  void transform_inputs(int64_t panel, A* out) const {
    alignas(64) static constexpr T kZeros[kLanes] = {};
    const int64_t n = panel / blocks_.panels, index = panel % blocks_.panels;
    const int64_t begin = blocks_.begin(index), end = blocks_.begin(index + 1);
    for (int64_t block = begin; block < end;) {
      const int64_t line = block / blocks_.length, across = block % blocks_.length;
      const int64_t count = smaller(end - block, blocks_.length - across);
      const int64_t top = kHeight * line - blocks_.phase - g_.pad_h, left = kWidth * across - g_.pad_w;
      const T* from[kLines];
      int64_t step[kLines];
      for (int r = 0; r < kLines; r++) {
        const bool inside = top + r >= 0 && top + r < g_.H;
        from[r] = inside ? static_cast<const T*>(t_.x.data) + n * t_.x.stride_n + (top + r) * t_.x.stride_h : kZeros;
        step[r] = inside ? t_.x.stride_w : 0;
      }
      for (int64_t c = 0; c < g_.C; c += kLanes) {
        const int lanes = static_cast<int>(smaller(kLanes, g_.C - c));
        A* to = out + (block - begin) * pitch_ + c;
        const auto column = [&](int64_t w, Vec<A>* u) __attribute__((always_inline)) {
          Vec<A> d[kLines];
          if (w >= 0 && w < g_.W) {
#pragma GCC unroll 12
            for (int r = 0; r < kLines; r++) {
              const T* pixel = from[r] + (step[r] ? w * step[r] + c : 0);
              d[r] = lanes == kLanes ? load(pixel) : load(pixel, lanes);
            }
          } else {
#pragma GCC unroll 12
            for (int r = 0; r < kLines; r++) d[r] = broadcast(A(0));
          }
          Down::template inputs<Ops>(d, u);
        };
        constexpr int kShared = kColumns - kWidth;  // of neighbouring blocks
        Vec<A> u[kColumns][kLines];
#pragma GCC unroll 6
        for (int i = 0; i < kShared; i++) column(left + i, u[i]);
        for (int64_t j = 0; j < count; j++, to += pitch_) {
#pragma GCC unroll 6
          for (int i = kShared; i < kColumns; i++) column(left + kWidth * j + i, u[i]);
#pragma GCC unroll 12
          for (int a = 0; a < kLines; a++) {
            Vec<A> row[kColumns], v[kColumns];
#pragma GCC unroll 12
            for (int b = 0; b < kColumns; b++) row[b] = u[b][a];
            Across::template inputs<Ops>(row, v);
#pragma GCC unroll 12
            for (int b = 0; b < kColumns; b++) store(to + (kColumns * a + b) * product_inputs_, v[b]);
#pragma GCC unroll 6
            for (int i = 0; i < kShared; i++) u[i][a] = u[kWidth + i][a];
          }
        }
      }
      block += count;
    }
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
        Vec<A> down[kHeight][kColumns], y[kHeight][kWidth];
#pragma GCC unroll 12
        for (int b = 0; b < kColumns; b++) {
          Vec<A> column[kLines], results[kHeight];
#pragma GCC unroll 12
          for (int a = 0; a < kLines; a++) column[a] = load(m + (kColumns * a + b) * kMR * kNR);
          Down::template outputs<Ops>(column, results);
#pragma GCC unroll 6
          for (int r = 0; r < kHeight; r++) down[r][b] = results[r];
        }
        Vec<A> sum = broadcast(A(0));
#pragma GCC unroll 6
        for (int r = 0; r < kHeight; r++) {
          Across::template outputs<Ops>(down[r], y[r]);
#pragma GCC unroll 6
          for (int s = 0; s < kWidth; s++) sum = sum + y[r][s];
        }
        const int64_t p = block / blocks_.length * kHeight - blocks_.phase, q = block % blocks_.length * kWidth;
        if (not_finite(sum)) by_definition(n, p, q, weight + v, y);
#pragma GCC unroll 6
        for (int r = 0; r < kHeight; r++) {
          if (p + r < 0 || p + r >= g_.P) continue;
#pragma GCC unroll 6
          for (int s = 0; s < kWidth; s++) {
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
  // Out of line, or so rare a case would take registers from what is done always.
  [[gnu::noinline]] void by_definition(int64_t n, int64_t p, int64_t q, const A* weight, Vec<A> (*y)[kWidth]) const {
    bool again[kHeight][kWidth];
    for (int i = 0; i < kHeight; i++)
      for (int j = 0; j < kWidth; j++) {
        again[i][j] = not_finite(y[i][j]);
        if (again[i][j]) y[i][j] = broadcast(A(0));
      }
    const T* const image = static_cast<const T*>(t_.x.data) + n * t_.x.stride_n;
    for (int64_t c = 0; c < g_.C; c++) {
      Vec<A> taps[Down::kTaps][Across::kTaps];
      restore_taps(weight + c * kNR, product_of(g_), taps);
      for (int i = 0; i < kHeight; i++)
        for (int j = 0; j < kWidth; j++)
          for (int r = 0; again[i][j] && r < Down::kTaps; r++)
            for (int s = 0; s < Across::kTaps; s++) {
              const int64_t h = p + i + r - g_.pad_h, w = q + j + s - g_.pad_w;
              if (h < 0 || h >= g_.H || w < 0 || w >= g_.W) continue;
              const A x = static_cast<A>(to_accum(image[h * t_.x.stride_h + w * t_.x.stride_w + c]));
              y[i][j] = fmadd(broadcast(x), taps[r][s], y[i][j]);
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
  const int64_t product_inputs_;  // of a panel: a vector more than its rows, as for product_of
};

}  // namespace ik::cpu::IK_ISA
