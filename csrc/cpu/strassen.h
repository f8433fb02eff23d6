// Products over many channels by Strassen's algorithm (1969): with rows, channels and columns in halves, seven products
// instead of eight.
//   M1 = (A11 + A22) (B11 + B22)   M2 = (A21 + A22) B11     C11 = M1 + M4 - M5 + M7   C12 = M3 + M5
//   M3 = A11 (B12 - B22)           M4 = A22 (B21 - B11)     C21 = M2 + M4             C22 = M1 - M2 + M3 + M6
//   M5 = (A11 + A12) B22           M6 = (A21 - A11) (B11 + B12)                       M7 = (A12 - A22) (B21 + B22)
// A unit of rows is up to two row panels, a unit of columns two panels of B: bits depend neither on the batch nor on
// the tile. The halves of the rows are the even and the odd pixels of a stretch of one image: the error of a pixel's
// outputs is relative to the larger of it and a neighbour, which is of its own size as a rule. Differences of
// infinities are no numbers: sums that are not finite are computed again by the definition, so that an infinite input
// has the effect that it should have.
//
#pragma once
#include <type_traits>

#include "cpu/gemm.h"
#include "cpu/pack_columns.h"
#include "cpu/scratch.h"

namespace ik::cpu::IK_ISA {

template <typename T>
class Strassen {
 public:
  using A = Accum<T>;
  static constexpr int64_t kMR = Gemm<A>::kMR, kNR = Gemm<A>::kNR, kLanes = Vec<A>::kLanes;
  static constexpr int64_t kProducts = 7, kQuarters = 4;
  // Sums and differences weigh more than what they are made of: their error must be smaller than a convolution's.
  static constexpr int64_t kShortChain = 96;

  // float64 asks for accuracy, and register blocks smaller than those of AVX-512 add up their products so often that
  // nothing is gained.
  static constexpr bool kPays = std::is_same_v<A, float> && Gemm<A>::kBytes == 64;
  // Fewer channels earn less than their sums and differences cost, and of few terms the sum is so accurate that its
  // error would grow visibly.
  static bool applies(const Geometry& g) { return g.C % 2 == 0 && g.C >= 640 && g.K >= 128; }

  // Rows of A as a producer left them: runs of channels are `step` apart.
  struct Source {
    const A* data;
    int64_t panel, pitch;  // from kMR rows, and from a row, to the next
    int64_t run, step;

    const A* at(int64_t i, int64_t c) const {
      return data + i / kMR * panel + i % kMR * pitch + c / run * step + c % run;
    }
  };

  // [unit][product][C / 2][kNR]. The last unit may be a single panel, which stands for both: four products then.
  static size_t weight_bytes(const Geometry& g) {
    const int64_t panels = ceil_div(g.K, kNR), products = panels / 2 * kProducts + panels % 2 * kSingleProducts;
    return static_cast<size_t>(products * (g.C / 2) * kNR) * sizeof(A);
  }
  static void pack(const Geometry& g, const WeightView& w, void* packed, int64_t unit_begin, int64_t unit_end) {
    const Geometry point = pointwise(g);
    const int64_t panel = g.C * kNR, half = panel / 2;
    A* const left = static_cast<A*>(scratch(Scratch::kTaps, static_cast<size_t>(2 * panel) * sizeof(A)));
    A* const right = left + panel;
    for (int64_t unit = unit_begin; unit < unit_end; unit++) {
      A* const out = static_cast<A*>(packed) + unit * kProducts * half;
      const int64_t column = 2 * unit * kNR;
      pack_columns<T>(point, w, column, left);
      if (single(g.K, unit)) {
        for (int64_t i = 0; i < half; i += kLanes) {
          const Vec<A> b1 = load(left + i), b2 = load(left + half + i);
          const Vec<A> terms[kSingleProducts] = {b1, b1 - b2, b2 - b1, b2};
          for (int64_t m = 0; m < kSingleProducts; m++) store(out + m * half + i, terms[m]);
        }
        continue;
      }
      pack_columns<T>(point, w, column + kNR, right);
      for (int64_t i = 0; i < half; i += kLanes) {
        const Vec<A> b11 = load(left + i), b21 = load(left + half + i), b12 = load(right + i);
        const Vec<A> b22 = load(right + half + i);
        const Vec<A> terms[kProducts] = {b11 + b22, b11, b12 - b22, b21 - b11, b22, b11 + b12, b21 + b22};
#pragma GCC unroll 7
        for (int64_t m = 0; m < kProducts; m++) store(out + m * half + i, terms[m]);
      }
    }
  }

  // A unit of rows counts as kMR of them. Two threads share an even number of them fairly.
  static int64_t units_of_image(const Geometry& g) {
    return smaller(round_up(ceil_div(g.P * g.Q, 2 * kMR), 2), g.P * g.Q);
  }
  static int64_t panels(const Geometry& g) { return ceil_div(g.K, 2 * kNR); }
  static int64_t rows(const Geometry& g) { return g.N * units_of_image(g) * kMR; }
  // Of the size that L2 holds beside the weights of a product.
  static int64_t tile_rows(const Geometry& g, int64_t tile_bytes) {
    return larger(1, tile_bytes / (kProducts * kMR * pitch_of(g.C) * static_cast<int64_t>(sizeof(A)))) * kMR;
  }

  // produce(n, begin, end) is the Source of pixels [begin, end) of image n.
  template <typename Produce>
  static void tile(const Geometry& g, const void* weight, const Epilogue& epilogue, const Tile& part,
                   const Produce& produce) {
    Strassen(g, weight, epilogue, part).run(produce);
  }

 private:
  // What becomes of a product: it is added to (or, the first, written to) a quarter of C.
  struct Use {
    int quarter;
    bool adds, negative;
  };
  enum Quarter { k11, k12, k21, k22 };
  static constexpr Use kNone{-1, false, false};
  static constexpr Use kUses[kProducts][2] = {{{k11, false, false}, {k22, false, false}},
                                              {{k21, false, false}, {k22, true, true}},
                                              {{k12, false, false}, {k22, true, false}},
                                              {{k11, true, false}, {k21, true, false}},
                                              {{k11, true, true}, {k12, true, false}},
                                              {{k22, true, false}, kNone},
                                              {{k11, true, false}, kNone}};
  // A panel paired with itself: C12 and C21 are the upper and the lower rows, from M2 to M5.
  static constexpr int64_t kSingleProducts = 4, kSingleFirst = 1;

  static bool single(int64_t K, int64_t unit) { return K - 2 * unit * kNR <= kNR; }
  static int64_t pitch_of(int64_t C) {
    const int64_t pitch = round_up(C / 2, kLanes);
    return pitch * static_cast<int64_t>(sizeof(A)) % 1024 == 0 ? pitch + kLanes : pitch;  // else rows share sets of L1
  }

  Strassen(const Geometry& g, const void* weight, const Epilogue& epilogue, const Tile& part)
      : g_(g),
        weight_(static_cast<const A*>(weight)),
        e_(epilogue),
        tile_{part.row_begin / kMR, part.row_end / kMR, part.panel_begin, part.panel_end},
        half_(g.C / 2),
        pitch_(pitch_of(g.C)) {}

  // The rows of a unit: even ones are its upper half, odd ones its lower half, which may be a row shorter.
  struct Unit {
    int64_t n, begin, end;
  };
  Unit unit_at(int64_t index) const {
    const int64_t image = units_of_image(g_), pixels = g_.P * g_.Q, i = index % image;
    return {index / image, pixels * i / image, pixels * (i + 1) / image};
  }

  template <typename Produce>
  void run(const Produce& produce) {
    const int64_t count = tile_.row_end - tile_.row_begin, sums_of_unit = kQuarters * kMR * kNR;
    const int64_t inputs_of_unit = kProducts * kMR * pitch_;
    A* const inputs = static_cast<A*>(
        scratch(Scratch::kCombined, static_cast<size_t>(count * (inputs_of_unit + sums_of_unit)) * sizeof(A)));
    A* const quarters = inputs + count * inputs_of_unit;
    RowPanel<A>* const halves =
        static_cast<RowPanel<A>*>(scratch(Scratch::kRows, static_cast<size_t>(2 * count) * sizeof(RowPanel<A>)));
    for (int64_t i = 0; i < count; i++) {
      const Unit unit = unit_at(tile_.row_begin + i);
      combine(produce(unit.n, unit.begin, unit.end), unit.end - unit.begin, inputs + i * inputs_of_unit);
      place(unit, halves + 2 * i);
    }

    const Chains chains(half_, kShortChain);
    alignas(64) A sums[kMR * kNR];
    ColumnPanel<T> panel{};
    panel.segments = chains.segments;
    panel.pitch = pitch_;
    panel.sums = sums;
    RowPanel<A> rows{};
    rows.segment_end = chains.count;
    constexpr std::make_integer_sequence<int, kMR> kAllRows{};
    constexpr int64_t kLines = kNR * static_cast<int64_t>(sizeof(A)) / kCacheLine;
    for (int64_t q = tile_.panel_begin; q < tile_.panel_end; q++) {
      const bool alone = single(g_.K, q);
      const int64_t first = alone ? kSingleFirst : 0, end = alone ? kSingleFirst + kSingleProducts : kProducts;
      const A* const weight = weight_ + q * kProducts * half_ * kNR;
      const bool narrow = alone && g_.K - 2 * q * kNR <= kLanes;
      for (int64_t m = first; m < end; m++) {
        panel.b = weight + (m - first) * half_ * kNR;
        const bool last = m + 1 == end;
        for (int64_t i = 0; i < count; i++) {
          A* const own = quarters + i * sums_of_unit;
          panel.updates = 0;
          for (const Use& use : kUses[m]) {
            if (use.quarter < 0 || (alone && use.quarter != k12 && use.quarter != k21)) continue;
            panel.update[panel.updates++] = {own + use.quarter * kMR * kNR, use.adds, use.negative};
          }
          rows.rows = halves[2 * i].rows;
          rows.a = inputs + i * inputs_of_unit + m * kMR * pitch_;
          const int64_t left = count - 1 - i;
          panel.ahead = !(last && q + 1 == tile_.panel_end) && left < kLines
                            ? half_ * kNR * static_cast<int64_t>(sizeof(A)) + left * kCacheLine
                            : 0;
          if (last) expect(halves + 2 * i, q);
          const MicroKernel<T> kernel =
              narrow ? pick_micro_kernel<T, 1>(rows.rows, kAllRows) : pick_micro_kernel<T, 2>(rows.rows, kAllRows);
          kernel(panel, rows);
          if (last) store_quarters(tile_.row_begin + i, q, alone, halves + 2 * i, own, produce);
        }
      }
    }
  }

  // The left factors of the products, [product][kMR][pitch], of a unit's rows. Where the lower half has no row to pair
  // with the last one of the upper half, that is paired with itself: the products cancel whatever it is.
  void combine(const Source& from, int64_t count, A* out) const {
    const int64_t quarter = kMR * pitch_;
    for (int64_t i = 0; i < count; i += 2, out += pitch_) {
      const int64_t pair = i + 1 < count ? i + 1 : i;
      for (int64_t c = 0; c < half_;) {
        const int64_t run = smaller(half_ - c, smaller(from.run - c % from.run, from.run - (c + half_) % from.run));
        const A *const a11 = from.at(i, c), *const a12 = from.at(i, c + half_);
        const A *const a21 = from.at(pair, c), *const a22 = from.at(pair, c + half_);
        // `lanes`: none, or how many of the vector's.
        const auto put = [&](int64_t j, auto... lanes) __attribute__((always_inline)) {
          const Vec<A> x11 = load(a11 + j, lanes...), x12 = load(a12 + j, lanes...);
          const Vec<A> x21 = load(a21 + j, lanes...), x22 = load(a22 + j, lanes...);
          A* const to = out + c + j;
          store(to, x11 + x22, lanes...);
          store(to + quarter, x21 + x22, lanes...);
          store(to + 2 * quarter, x11, lanes...);
          store(to + 3 * quarter, x22, lanes...);
          store(to + 4 * quarter, x11 + x12, lanes...);
          store(to + 5 * quarter, x21 - x11, lanes...);
          store(to + 6 * quarter, x12 - x22, lanes...);
        };
        int64_t j = 0;
        for (; j + kLanes <= run; j += kLanes) put(j);
        if (j < run) put(j, static_cast<int>(run - j));
        c += run;
      }
    }
  }

  // Where the results of a unit's halves go.
  void place(const Unit& unit, RowPanel<A>* halves) const {
    int64_t p = unit.begin / g_.Q, q = unit.begin % g_.Q;
    const int64_t count = unit.end - unit.begin;
    halves[0].rows = static_cast<int>((count + 1) / 2);
    halves[1].rows = static_cast<int>(count / 2);
    for (int64_t i = 0; i < count; i++) {
      RowPanel<A>& half = halves[i % 2];
      const int64_t row = i / 2;
      half.y[row] = unit.n * e_.y.stride_n + p * e_.y.stride_h + q * e_.y.stride_w;
      half.residual[row] = unit.n * e_.residual.stride_n + p * e_.residual.stride_h + q * e_.residual.stride_w;
      if (++q == g_.Q) q = 0, p++;
    }
  }

  // Fetches what the epilogue of a unit will read and write.
  void expect(const RowPanel<A>* halves, int64_t q) const {
    const int64_t begin = 2 * q * kNR, end = smaller(g_.K, begin + 2 * kNR);
    constexpr int64_t kLine = kCacheLine / static_cast<int64_t>(sizeof(T));
    for (int half = 0; half < 2; half++)
      for (int i = 0; i < halves[half].rows; i++)
        for (int64_t k = begin; k < end; k += kLine) {
          __builtin_prefetch(static_cast<T*>(e_.y.data) + halves[half].y[i] + k, 1);
          if (e_.residual.data)
            __builtin_prefetch(static_cast<const T*>(e_.residual.data) + halves[half].residual[i] + k);
        }
  }

  template <typename Produce>
  void store_quarters(int64_t unit, int64_t q, bool alone, const RowPanel<A>* halves, A* quarters,
                      const Produce& produce) const {
    const auto at = [](auto* data, int64_t offset) { return data ? data + offset : nullptr; };
    for (int quarter = 0; quarter < kQuarters; quarter++) {
      if (alone && quarter != k12 && quarter != k21) continue;
      const RowPanel<A>& rows = halves[quarter / 2];
      const int64_t column = 2 * q * kNR + (alone ? 0 : quarter % 2 * kNR), columns = smaller(kNR, g_.K - column);
      ColumnPanel<T> panel{};
      panel.sums = quarters + quarter * kMR * kNR;
      panel.scale = at(static_cast<const A*>(e_.scale), column);
      panel.shift = at(static_cast<const A*>(e_.shift), column);
      panel.residual = at(static_cast<const T*>(e_.residual.data), column);
      panel.y = static_cast<T*>(e_.y.data) + column;
      if (!finite(panel.sums, rows.rows, columns)) {
        const Unit pixels = unit_at(unit);
        const Source source = produce(pixels.n, pixels.begin, pixels.end);
        const A* const weight = weight_ + q * kProducts * half_ * kNR;
        for (int64_t i = 0; i < rows.rows; i++)
          for (int64_t v = 0; v < columns; v += kLanes)
            by_definition(source, 2 * i + quarter / 2, weight + v, alone ? 2 : quarter % 2, panel.sums + i * kNR + v);
      }
      finish<T>(panel, rows, e_.activation, columns);
    }
  }

  static bool finite(const A* sums, int rows, int64_t columns) {
    Vec<A> zeros = broadcast(A(0));
    for (int i = 0; i < rows; i++)
      for (int64_t v = 0; v < columns; v += kLanes) zeros = fmadd(load(sums + i * kNR + v), broadcast(A(0)), zeros);
    return !any_nan(zeros);
  }
  // A row's sums of kLanes columns of the left (0), right (1) or only (2) panel of a unit, unless they are finite.
  void by_definition(const Source& from, int64_t row, const A* weight, int side, A* sums) const {
    if (!not_finite(load(sums))) return;
    const auto term = [&](int64_t m, int64_t c) { return load(weight + (m * half_ + c) * kNR); };
    Vec<A> sum = broadcast(A(0));
    for (int64_t c = 0; c < half_; c++) {
      const Vec<A> upper = side == 1 ? term(2, c) + term(4, c) : term(side == 0 ? 1 : 0, c);
      sum = fmadd(broadcast(*from.at(row, c)), upper, sum);
    }
    for (int64_t c = 0; c < half_; c++) {
      const Vec<A> lower = side == 0 ? term(3, c) + term(1, c) : term(side == 1 ? 4 : 3, c);
      sum = fmadd(broadcast(*from.at(row, half_ + c)), lower, sum);
    }
    store(sums, sum);
  }

  const Geometry& g_;
  const A* const weight_;
  const Epilogue& e_;
  const Tile tile_;  // rows in units
  const int64_t half_, pitch_;
};

}  // namespace ik::cpu::IK_ISA
