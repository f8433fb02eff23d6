// Softmax cross entropy of a range of rows, written once for all instruction sets.
#pragma once
#include <cmath>

#include "cpu/activation.h"
#include "cpu/label_smoothing_table.h"

namespace ik::cpu::IK_ISA {

// Classes that one step reads twice, first for their maximum, then for their sums: they stay in the first-level cache.
constexpr int64_t kClassBlock = 1024;

// Lane numbers 0, 1, 2, ...
template <typename A>
inline Vec<A> lane_numbers() {
  static constexpr A kNumbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  static_assert(Vec<A>::kLanes <= 16);
  return load(kNumbers);
}
// The first n lanes of x, then `rest`.
template <typename A>
inline Vec<A> first_lanes(Vec<A> x, int n, A rest) {
  return where_greater(broadcast(static_cast<A>(n)), lane_numbers<A>(), x, broadcast(rest));
}
template <typename A>
inline A horizontal_max(Vec<A> a) {
  A lanes[Vec<A>::kLanes];
  store(lanes, a);
  A largest = lanes[0];
  for (A lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

// exp of x <= 0, exactly 0 where float's exponent ends; NaN stays NaN.
inline VecF exp_nonpositive(VecF x) { return where_greater(broadcast(-87.33f), x, broadcast(0.0f), exp(x)); }
inline VecD exp_nonpositive(VecD x) { return exp(x); }

// What one pass over a row collects, relative to `largest` so that logits of any size stay in range. All terms of both
// sums are non-negative: nothing cancels.
struct RowSums {
  double largest = -HUGE_VAL;
  double exponentials = 0;  // sum_c exp(x[c] - reference)
  double distances = 0;     // sum_c w[c] (reference - x[c]) / K
  double weights = 0;       // sum_c w[c] / K so far

  // Differences need a finite reference: minus infinity is the maximum of classes that are all impossible.
  double reference() const { return largest == -HUGE_VAL ? 0 : largest; }

  void move_to(double maximum) {
    const double before = reference();
    if (maximum > largest) largest = maximum;
    const double shift = reference() - before;
    if (exponentials != 0) exponentials *= std::exp(-shift);
    if (weights != 0) distances += weights * shift;
  }
};

template <typename T>
struct LabelSmoothingKernels {
  using A = Accum<T>;
  using V = Vec<A>;
  static constexpr int kLanes = V::kLanes;

  static A maximum(const T* x, int64_t n) {
    V most = broadcast(static_cast<A>(-HUGE_VAL));
    int64_t c = 0;
    for (; c + kLanes <= n; c += kLanes) most = vmax(load(x + c), most);
    const int rest = static_cast<int>(n - c);
    if (rest) most = vmax(first_lanes(load(x + c, rest), rest, static_cast<A>(-HUGE_VAL)), most);
    return horizontal_max(most);
  }

  template <bool kDistances>
  static void add_block(const T* x, const A* weight, int64_t n, A share_of_class, RowSums* sums) {
    sums->move_to(static_cast<double>(maximum(x, n)));
    const V reference = broadcast(static_cast<A>(sums->reference()));
    const V share = broadcast(share_of_class);
    V exponentials = broadcast(A(0)), distances = broadcast(A(0));
    int64_t c = 0;
    for (; c + kLanes <= n; c += kLanes) {
      const V distance = reference - load(x + c);
      exponentials = exponentials + exp_nonpositive(broadcast(A(0)) - distance);
      if constexpr (kDistances) distances = fmadd(weight ? load(weight + c) * share : share, distance, distances);
    }
    if (const int rest = static_cast<int>(n - c)) {
      const V distance = reference - load(x + c, rest);
      exponentials = exponentials + first_lanes(exp_nonpositive(broadcast(A(0)) - distance), rest, A(0));
      if constexpr (kDistances) {
        const V weighted = (weight ? load(weight + c, rest) * share : share) * distance;
        distances = distances + first_lanes(weighted, rest, A(0));
      }
    }
    sums->exponentials += static_cast<double>(horizontal_sum(exponentials));
    if constexpr (kDistances) sums->distances += static_cast<double>(horizontal_sum(distances));
  }

  // In short chains: one over all classes would show in a loss of float64.
  static double sum_of_weights(const void* weight, int64_t n) {
    const A* values = static_cast<const A*>(weight);
    constexpr int64_t kSums = 16;
    double sums[kSums] = {};
    for (int64_t c = 0; c < n; ++c) sums[c % kSums] += static_cast<double>(values[c]);
    for (int64_t width = kSums / 2; width > 0; width /= 2)
      for (int64_t i = 0; i < width; ++i) sums[i] += sums[i + width];
    return sums[0];
  }

  template <bool kDistances>
  static RowSums row_sums(const T* x, const A* weight, int64_t classes) {
    RowSums sums;
    const double share = 1 / static_cast<double>(classes);
    for (int64_t begin = 0; begin < classes; begin += kClassBlock) {
      const int64_t n = classes - begin < kClassBlock ? classes - begin : kClassBlock;
      const A* block_weight = weight ? weight + begin : nullptr;
      add_block<kDistances>(x + begin, block_weight, n, static_cast<A>(share), &sums);
      if constexpr (kDistances) {
        if (!weight) {
          sums.weights += share * static_cast<double>(n);
        } else {
          sums.weights += share * sum_of_weights(block_weight, n);
        }
      }
    }
    return sums;
  }

  static void forward(const LabelSmoothingForward& args, int64_t begin, int64_t end) {
    const LabeledRows& rows = args.rows;
    const A* weight = static_cast<const A*>(rows.weight);
    for (int64_t i = begin; i < end; ++i) {
      A* statistics = static_cast<A*>(args.statistics) + 2 * i;
      const int64_t label = rows.target[i];
      if (label == rows.ignore_index) {
        args.loss[i] = 0;
        statistics[0] = statistics[1] = 0;
        continue;
      }
      const T* x = static_cast<const T*>(rows.logits) + i * rows.logits_stride;
      const bool smooth = rows.smoothing != 0;
      const RowSums sums = smooth ? row_sums<true>(x, weight, rows.K) : row_sums<false>(x, weight, rows.K);
      const double log_sum = std::log(sums.exponentials);
      const double label_weight = weight ? static_cast<double>(weight[label]) : 1;
      const double nll = log_sum + (sums.reference() - static_cast<double>(to_accum(x[label])));
      double loss = (1 - rows.smoothing) * label_weight * nll;
      if (smooth) loss += rows.smoothing * (sums.distances + sums.weights * log_sum);
      args.loss[i] = loss;
      statistics[0] = static_cast<A>(sums.reference());
      statistics[1] = static_cast<A>(1 / sums.exponentials);
    }
  }

  static void backward(const LabelSmoothingBackward& args, double weights, int64_t begin, int64_t end) {
    const LabeledRows& rows = args.rows;
    const A* weight = static_cast<const A*>(rows.weight);
    const double prior = rows.smoothing / static_cast<double>(rows.K);
    for (int64_t i = begin; i < end; ++i) {
      T* grad = static_cast<T*>(args.grad_logits) + i * rows.K;
      const int64_t label = rows.target[i];
      if (label == rows.ignore_index) {
        for (int64_t c = 0; c < rows.K; ++c) from_accum(A(0), grad + c);
        continue;
      }
      const T* x = static_cast<const T*>(rows.logits) + i * rows.logits_stride;
      const A* statistics = static_cast<const A*>(args.statistics) + 2 * i;
      const double label_mass = (1 - rows.smoothing) * (weight ? static_cast<double>(weight[label]) : 1);
      // The gradient is scale (p[c] mass - q[c]) with q[c] = prior w[c], and label_mass more at the label.
      const V reference = broadcast(statistics[0]), inverse_sum = broadcast(statistics[1]);
      const V scale = broadcast(static_cast<A>(args.scale[i]));
      const V mass = broadcast(static_cast<A>(label_mass + prior * weights));
      const V minus_prior = broadcast(static_cast<A>(-prior));
      const auto gradient = [&](V logit, V minus_q) {
        const V probability = exp_nonpositive(logit - reference) * inverse_sum;
        return scale * fmadd(probability, mass, minus_q);
      };
      int64_t c = 0;
      for (; c + kLanes <= rows.K; c += kLanes) {
        store(grad + c, gradient(load(x + c), weight ? minus_prior * load(weight + c) : minus_prior));
      }
      if (const int rest = static_cast<int>(rows.K - c)) {
        const V minus_q = weight ? minus_prior * load(weight + c, rest) : minus_prior;
        store(grad + c, gradient(load(x + c, rest), minus_q), rest);
      }
      const double label_prior = prior * (weight ? static_cast<double>(weight[label]) : 1);
      const V minus_label_q = broadcast(static_cast<A>(-(label_mass + label_prior)));
      store(grad + label, gradient(load(x + label, 1), minus_label_q), 1);
    }
  }

  static constexpr LabelSmoothingTable table(const char* forward_counter, const char* backward_counter) {
    return {forward_counter, backward_counter, sum_of_weights, forward, backward};
  }
};

#define IK_LABEL_SMOOTHING_TABLE(type, variant)                                            \
  LabelSmoothingKernels<type>::table("label_smoothing_cross_entropy.forward.cpu_" variant, \
                                     "label_smoothing_cross_entropy.backward.cpu_" variant)

}  // namespace ik::cpu::IK_ISA
