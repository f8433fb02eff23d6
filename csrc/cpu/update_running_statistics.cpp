#include "update_running_statistics.h"

namespace ik::cpu {

namespace {

// torch.lerp's formula, which is exact at both ends. `factor` scales the batch's values first.
template <typename A>
void move_towards(int64_t size, A* values, const A* ends, A weight, A factor) {
  if (weight < A(0.5)) {
    for (int64_t i = 0; i < size; ++i) values[i] += weight * (ends[i] * factor - values[i]);
  } else {
    for (int64_t i = 0; i < size; ++i) {
      const A end = ends[i] * factor;
      values[i] = end - (end - values[i]) * (1 - weight);
    }
  }
}

template <typename A>
void update(const RunningStatistics& args) {
  const A momentum = static_cast<A>(args.momentum);
  move_towards(args.K, static_cast<A*>(args.running_mean), static_cast<const A*>(args.mean), momentum, A(1));
  move_towards(args.K, static_cast<A*>(args.running_var), static_cast<const A*>(args.var), momentum,
               static_cast<A>(args.unbiased));
}

}  // namespace

void update_running_statistics(const RunningStatistics& args) {
  args.dtype == DType::kFloat64 ? update<double>(args) : update<float>(args);
  if (args.batches) ++*args.batches;
}

}  // namespace ik::cpu
