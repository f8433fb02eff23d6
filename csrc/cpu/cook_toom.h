// One direction of Winograd's F(m, r) by Toom's and Cook's algorithm (Blahut 2010, section 5.2): m outputs of a window
// of r taps are m + r - 1 products, of the inputs' and the taps' values at 0, at pairs of points a and -a and at
// infinity. All constants are computed by the compiler.
#pragma once
#include <cstdint>

#include "cpu/vec.h"

namespace ik::cpu::IK_ISA {

template <int kOutputsValue, int kTapsValue>
struct CookToom {
  static constexpr int kOutputs = kOutputsValue, kTaps = kTapsValue, kProducts = kOutputs + kTaps - 1;
  static constexpr int kPairs = (kProducts - 2) / 2, kLast = kProducts - 1;
  static_assert(kOutputs > 1 && kTaps > 1 && kProducts % 2 == 0 && kPairs <= 5, "points come in pairs");

  // The factors that belong to taps g[0] to g[kTaps - 1].
  template <typename A>
  static void taps(const Vec<A>* g, Vec<A>* out) {
    out[0] = g[0] * broadcast(A(1 / kConstants.zero[0]));
    out[kLast] = g[kTaps - 1];
#pragma GCC unroll 5
    for (int j = 0; j < kPairs; j++) {
      Vec<A> even = g[0] * broadcast(A(kConstants.taps[j][0])), odd = g[1] * broadcast(A(kConstants.taps[j][1]));
#pragma GCC unroll 7
      for (int t = 2; t < kTaps; t++) {
        Vec<A>& sum = t % 2 == 0 ? even : odd;
        sum = fmadd(g[t], broadcast(A(kConstants.taps[j][t])), sum);
      }
      out[2 * j + 1] = even + odd;
      out[2 * j + 2] = even - odd;
    }
  }

  // Those of inputs d[0] to d[kProducts - 1].
  template <typename A>
  static void inputs(const Vec<A>* d, Vec<A>* out) {
    out[0] = polynomial<A>(kConstants.zero, kPairs, d);
    out[kLast] = polynomial<A>(kConstants.zero, kPairs, d + 1);
#pragma GCC unroll 5
    for (int j = 0; j < kPairs; j++) {
      const Vec<A> even = polynomial<A>(kConstants.pair[j], kPairs - 1, d + 2);
      const Vec<A> odd = polynomial<A>(kConstants.pair[j], kPairs - 1, d + 1);
      out[2 * j + 1] = add<A>(even, odd, kConstants.point[j]);
      out[2 * j + 2] = add<A>(even, odd, -kConstants.point[j]);
    }
  }

  // Outputs y[0] to y[kOutputs - 1] of the products' sums.
  template <typename A>
  static void outputs(const Vec<A>* m, Vec<A>* y) {
    Vec<A> sums[kPairs], differences[kPairs];
#pragma GCC unroll 5
    for (int j = 0; j < kPairs; j++) {
      sums[j] = m[2 * j + 1] + m[2 * j + 2];
      differences[j] = m[2 * j + 1] - m[2 * j + 2];
    }
#pragma GCC unroll 6
    for (int i = 0; i < kOutputs; i++) {
      const Vec<A>* const terms = i % 2 == 0 ? sums : differences;
      Vec<A> sum = i == 0 ? m[0] + terms[0] : terms[0] * broadcast(A(kConstants.power[i][0]));
#pragma GCC unroll 5
      for (int j = 1; j < kPairs; j++) sum = add<A>(sum, terms[j], kConstants.power[i][j]);
      y[i] = i == kOutputs - 1 ? sum + m[kLast] : sum;
    }
  }

  // Tap t again, from its factors at(0) to at(kProducts - 1).
  template <typename A, typename At>
  static Vec<A> tap(int64_t t, At at) {
    Vec<A> sum = broadcast(A(0));
    for (int i = 0; i < kTaps; i++)
      sum = fmadd(at(i + 1 < kTaps ? i : kLast), broadcast(A(kConstants.inverse[t][i])), sum);
    return sum;
  }

 private:
  struct Constants {
    double point[kPairs];            // a
    double zero[kPairs + 1];         // coefficients of the product of all x^2 - a^2, in x^2
    double pair[kPairs][kPairs];     // of the product without the pair's own
    double taps[kPairs][kTaps];      // a^t over the product of a's distances from all other points
    double power[kOutputs][kPairs];  // a^i
    double inverse[kTaps][kTaps];    // of what taps() does for the first kTaps - 1 factors and the last
  };

  // Few digits are lost for these; halves and quarters are exact.
  static constexpr double kPoints[][5] = {{1}, {0.75, 1.5}, {0.5, 1, 2}, {0.5, 1, 1.5, 2.5}, {0.5, 0.75, 1, 1.5, 2.5}};

  // Times (x^2 - a^2).
  static constexpr void multiply(double* coefficients, int degree, double a) {
    coefficients[degree + 1] = coefficients[degree];
    for (int k = degree; k > 0; k--) coefficients[k] = coefficients[k - 1] - a * a * coefficients[k];
    coefficients[0] *= -a * a;
  }

  static constexpr Constants make() {
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
      for (int t = 0; t < kTaps; t++, power *= points[j]) c.taps[j][t] = power / distances;
      power = 1;
      for (int i = 0; i < kOutputs; i++, power *= points[j]) c.power[i][j] = power;
    }
    invert(c);
    return c;
  }

  // Gauss and Jordan.
  static constexpr void invert(Constants& c) {
    double m[kTaps][2 * kTaps] = {};
    for (int i = 0; i < kTaps; i++) {
      m[i][kTaps + i] = 1;
      for (int t = 0; t < kTaps; t++) {
        if (i == 0)
          m[i][t] = t == 0 ? 1 / c.zero[0] : 0;
        else if (i == kTaps - 1)
          m[i][t] = t == kTaps - 1 ? 1 : 0;
        else
          m[i][t] = i % 2 == 0 && t % 2 != 0 ? -c.taps[(i - 1) / 2][t] : c.taps[(i - 1) / 2][t];
      }
    }
    for (int i = 0; i < kTaps; i++) {
      int pivot = i;
      for (int r = i + 1; r < kTaps; r++)
        if (m[r][i] * m[r][i] > m[pivot][i] * m[pivot][i]) pivot = r;
      for (int k = 0; k < 2 * kTaps; k++) {
        const double other = m[i][k];
        m[i][k] = m[pivot][k];
        m[pivot][k] = other;
      }
      const double scale = 1 / m[i][i];
      for (int k = 0; k < 2 * kTaps; k++) m[i][k] *= scale;
      for (int r = 0; r < kTaps; r++) {
        const double factor = m[r][i];
        if (r == i) continue;
        for (int k = 0; k < 2 * kTaps; k++) m[r][k] -= factor * m[i][k];
      }
    }
    for (int t = 0; t < kTaps; t++)
      for (int i = 0; i < kTaps; i++) c.inverse[t][i] = m[t][kTaps + i];
  }

  // sum + x * factor; the compiler knows the factor.
  template <typename A>
  static Vec<A> add(Vec<A> sum, Vec<A> x, double factor) {
    return factor == 1 ? sum + x : factor == -1 ? sum - x : fmadd(x, broadcast(A(factor)), sum);
  }
  // Of every other input; the leading coefficient is one.
  template <typename A>
  static Vec<A> polynomial(const double* coefficients, int degree, const Vec<A>* d) {
    Vec<A> sum = d[2 * degree];
#pragma GCC unroll 5
    for (int k = degree - 1; k >= 0; k--) sum = add<A>(sum, d[2 * k], coefficients[k]);
    return sum;
  }

  static constexpr Constants kConstants = make();
};

// A direction in which the window has one tap.
template <>
struct CookToom<1, 1> {
  static constexpr int kOutputs = 1, kTaps = 1, kProducts = 1;
  template <typename A>
  static void taps(const Vec<A>* g, Vec<A>* out) {
    out[0] = g[0];
  }
  template <typename A>
  static void inputs(const Vec<A>* d, Vec<A>* out) {
    out[0] = d[0];
  }
  template <typename A>
  static void outputs(const Vec<A>* m, Vec<A>* y) {
    y[0] = m[0];
  }
  template <typename A, typename At>
  static Vec<A> tap(int64_t, At at) {
    return at(0);
  }
};

}  // namespace ik::cpu::IK_ISA
