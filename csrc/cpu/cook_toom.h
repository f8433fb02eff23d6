// One direction of Winograd's F(m, r) by Toom's and Cook's algorithm (Blahut 2010, section 5.2): m outputs of a window
// of r taps are m + r - 1 products, of the inputs' and the taps' values at 0, at pairs of points a and -a and at
// infinity. All constants are computed by the compiler.
#pragma once
#include <cstdint>

namespace ik::cpu {

// Ops: a vector type V with + and -, add(sum, x, factor) = sum + x * factor, times(x, factor). It must be of the
// instruction set, whose code the linker must not merge with another's.
template <int kOutputsValue, int kTapsValue>
struct CookToom {
  static constexpr int kOutputs = kOutputsValue, kTaps = kTapsValue, kProducts = kOutputs + kTaps - 1;
  static constexpr int kPairs = (kProducts - 2) / 2, kLast = kProducts - 1;
  static_assert(kOutputs > 1 && kTaps > 1 && kProducts % 2 == 0 && kPairs <= 5 && kPairs != 4, "points come in pairs");

  // The factors that belong to taps g[0] to g[kTaps - 1].
  template <typename Ops, typename V = typename Ops::V>
  static void taps(const V* g, V* out) {
    evaluate<Ops, kTaps>(kConstants.taps, 1 / kConstants.zero[0], g, out);
  }

  // Those of inputs d[0] to d[kProducts - 1].
  template <typename Ops, typename V = typename Ops::V>
  static void inputs(const V* d, V* out) {
    out[0] = polynomial<Ops>(kConstants.zero, kPairs, d);
    out[kLast] = polynomial<Ops>(kConstants.zero, kPairs, d + 1);
#pragma GCC unroll 5
    for (int j = 0; j < kPairs; j++) {
      const V even = polynomial<Ops>(kConstants.pair[j], kPairs - 1, d + 2);
      const V odd = polynomial<Ops>(kConstants.pair[j], kPairs - 1, d + 1);
      out[2 * j + 1] = Ops::add(even, odd, kConstants.point[j]);
      out[2 * j + 2] = Ops::add(even, odd, -kConstants.point[j]);
    }
  }

  // Outputs y[0] to y[kOutputs - 1] of the products' sums.
  template <typename Ops, typename V = typename Ops::V>
  static void outputs(const V* m, V* y) {
    combine<Ops, kOutputs>(kConstants.powers, 1.0, m, y);
  }

  // outputs() transposed: the factors of the outputs' gradients in the gradient of a tap.
  template <typename Ops, typename V = typename Ops::V>
  static void output_gradients(const V* y, V* out) {
    evaluate<Ops, kOutputs>(kConstants.powers, 1.0, y, out);
  }

  // taps() transposed: the taps' gradients g[0] to g[kTaps - 1] of the products' sums.
  template <typename Ops, typename V = typename Ops::V>
  static void tap_gradients(const V* m, V* g) {
    combine<Ops, kTaps>(kConstants.taps, 1 / kConstants.zero[0], m, g);
  }

  // Tap t again, from its factors at(0) to at(kProducts - 1), all of which are rounded: by least squares.
  template <typename Ops, typename At>
  static auto tap(int t, At at) {
    const double* const factors = kConstants.inverse[t];
    const bool even = t % 2 == 0;
    const auto pair = [&](int j) { return even ? at(2 * j + 1) + at(2 * j + 2) : at(2 * j + 1) - at(2 * j + 2); };
    auto sum = Ops::times(pair(0), factors[1]);
#pragma GCC unroll 5
    for (int j = 1; j < kPairs; j++) sum = Ops::add(sum, pair(j), factors[2 * j + 1]);
    return even ? Ops::add(Ops::add(sum, at(0), factors[0]), at(kLast), factors[kLast]) : sum;
  }

 private:
  struct Constants {
    double point[kPairs];              // a
    double zero[kPairs + 1];           // coefficients of the product of all x^2 - a^2, in x^2
    double pair[kPairs][kPairs];       // of the product without the pair's own
    double taps[kTaps][kPairs];        // a^t over the product of a's distances from all other points
    double powers[kOutputs][kPairs];   // a^i
    double inverse[kTaps][kProducts];  // of taps() with the least error, where all factors have the same relative one
  };

  // Of one, two, three and five pairs. Few digits are lost for these, and binary fractions are exact.
  static constexpr double kPoints[][5] = {{1}, {0.625, 1.5}, {0.5, 1, 2}, {}, {0.5, 0.75, 1, 1.5, 2.5}};

  // Times (x^2 - a^2).
  static consteval void multiply(double* coefficients, int degree, double a) {
    coefficients[degree + 1] = coefficients[degree];
    for (int k = degree; k > 0; k--) coefficients[k] = coefficients[k - 1] - a * a * coefficients[k];
    coefficients[0] *= -a * a;
  }

  static consteval Constants make() {
    Constants c{};
    const double* const points = kPoints[kPairs - 1];
    c.zero[0] = 1;
    for (int j = 0; j < kPairs; j++) {
      c.point[j] = points[j];
      multiply(c.zero, j, points[j]);
      c.pair[j][0] = 1;
      double distances = 2 * points[j] * points[j];
      for (int i = 0, degree = 0; i < kPairs; i++) {
        if (i == j) continue;
        multiply(c.pair[j], degree++, points[i]);
        distances *= points[j] * points[j] - points[i] * points[i];
      }
      double power = 1;
      for (int t = 0; t < kTaps; t++, power *= points[j]) c.taps[t][j] = power / distances;
      power = 1;
      for (int i = 0; i < kOutputs; i++, power *= points[j]) c.powers[i][j] = power;
    }
    invert(c);
    return c;
  }

  // By Gauss and Jordan. The normal equations are well-conditioned enough for double.
  static consteval void invert(Constants& c) {
    double m[kTaps][kTaps + kProducts] = {};
    for (int i = 0; i < kProducts; i++) {
      double row[kTaps] = {}, squares = 0;
      for (int t = 0; t < kTaps; t++) {
        if (i == 0)
          row[t] = t == 0 ? 1 / c.zero[0] : 0;
        else if (i == kLast)
          row[t] = t == kTaps - 1 ? 1 : 0;
        else
          row[t] = i % 2 == 0 && t % 2 != 0 ? -c.taps[t][(i - 1) / 2] : c.taps[t][(i - 1) / 2];
        squares += row[t] * row[t];
      }
      for (int t = 0; t < kTaps; t++) {
        for (int k = 0; k < kTaps; k++) m[t][k] += row[t] * row[k] / squares;
        m[t][kTaps + i] = row[t] / squares;
      }
    }
    for (int i = 0; i < kTaps; i++) {
      const double scale = 1 / m[i][i];
      for (int k = 0; k < kTaps + kProducts; k++) m[i][k] *= scale;
      for (int r = 0; r < kTaps; r++) {
        const double factor = m[r][i];
        if (r == i) continue;
        for (int k = 0; k < kTaps + kProducts; k++) m[r][k] -= factor * m[i][k];
      }
    }
    for (int t = 0; t < kTaps; t++)
      for (int i = 0; i < kProducts; i++) c.inverse[t][i] = m[t][kTaps + i];
  }

  // Of every other input; the leading coefficient is one.
  template <typename Ops, typename V = typename Ops::V>
  static V polynomial(const double* coefficients, int degree, const V* d) {
    V sum = d[2 * degree];
#pragma GCC unroll 5
    for (int k = degree - 1; k >= 0; k--) sum = Ops::add(sum, d[2 * k], coefficients[k]);
    return sum;
  }

  // out: `zero` times x[0], at each pair of points the sums of factors[i] times x[i] with both signs of odd i, and the
  // last x.
  template <typename Ops, int kCount, typename V = typename Ops::V>
  static void evaluate(const double (&factors)[kCount][kPairs], double zero, const V* x, V* out) {
    out[0] = Ops::times(x[0], zero);
    out[kLast] = x[kCount - 1];
#pragma GCC unroll 5
    for (int j = 0; j < kPairs; j++) {
      V even = Ops::times(x[0], factors[0][j]), odd = Ops::times(x[1], factors[1][j]);
#pragma GCC unroll 7
      for (int i = 2; i < kCount; i++) {
        V& sum = i % 2 == 0 ? even : odd;
        sum = Ops::add(sum, x[i], factors[i][j]);
      }
      out[2 * j + 1] = even + odd;
      out[2 * j + 2] = even - odd;
    }
  }

  // evaluate() transposed: out[i] is the sum of factors[i] times the sums (even i) or differences of all pairs of m,
  // with `zero` times m[0] in the first and m[kLast] in the last.
  template <typename Ops, int kCount, typename V = typename Ops::V>
  static void combine(const double (&factors)[kCount][kPairs], double zero, const V* m, V* out) {
    V sums[kPairs], differences[kPairs];
#pragma GCC unroll 5
    for (int j = 0; j < kPairs; j++) {
      sums[j] = m[2 * j + 1] + m[2 * j + 2];
      differences[j] = m[2 * j + 1] - m[2 * j + 2];
    }
#pragma GCC unroll 7
    for (int i = 0; i < kCount; i++) {
      const V* const terms = i % 2 == 0 ? sums : differences;
      V sum = Ops::times(terms[0], factors[i][0]);
#pragma GCC unroll 5
      for (int j = 1; j < kPairs; j++) sum = Ops::add(sum, terms[j], factors[i][j]);
      if (i == 0) sum = Ops::add(sum, m[0], zero);
      out[i] = i == kCount - 1 ? sum + m[kLast] : sum;
    }
  }

  static constexpr Constants kConstants = make();
};

// A direction in which the window has one tap.
template <>
struct CookToom<1, 1> {
  static constexpr int kOutputs = 1, kTaps = 1, kProducts = 1;
  template <typename Ops, typename V = typename Ops::V>
  static void taps(const V* g, V* out) {
    out[0] = g[0];
  }
  template <typename Ops, typename V = typename Ops::V>
  static void inputs(const V* d, V* out) {
    out[0] = d[0];
  }
  template <typename Ops, typename V = typename Ops::V>
  static void outputs(const V* m, V* y) {
    y[0] = m[0];
  }
  template <typename Ops, typename V = typename Ops::V>
  static void output_gradients(const V* y, V* out) {
    out[0] = y[0];
  }
  template <typename Ops, typename V = typename Ops::V>
  static void tap_gradients(const V* m, V* g) {
    g[0] = m[0];
  }
  template <typename Ops, typename At>
  static auto tap(int, At at) {
    return at(0);
  }
};

}  // namespace ik::cpu
