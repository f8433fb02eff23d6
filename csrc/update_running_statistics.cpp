#include <torch/csrc/stable/library.h>

#include "common/checks.h"

namespace ik {

namespace {

using torch::headeronly::ScalarType;

void check_statistic(const Tensor& tensor, const Tensor& mean, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.dim() == 1 && tensor.size(0) == mean.size(0) &&
                      tensor.scalar_type() == mean.scalar_type() && tensor.is_contiguous(),
                  name, ": expected a contiguous CPU tensor like mean ", describe(mean), ", got ", describe(tensor));
}

// torch.lerp's formula, which is exact at both ends. `factor` scales the batch's values first.
template <typename A>
void move_towards(const Tensor& running, const Tensor& batch, double momentum, double factor) {
  A* const values = static_cast<A*>(running.mutable_data_ptr());
  const A* const ends = static_cast<const A*>(batch.const_data_ptr());
  const A weight = static_cast<A>(momentum), scale = static_cast<A>(factor);
  const int64_t size = running.size(0);
  if (weight < A(0.5)) {
    for (int64_t i = 0; i < size; ++i) values[i] += weight * (ends[i] * scale - values[i]);
  } else {
    for (int64_t i = 0; i < size; ++i) {
      const A end = ends[i] * scale;
      values[i] = end - (end - values[i]) * (1 - weight);
    }
  }
}

}  // namespace

// What a batch norm remembers of a batch of `count` > 1 values per channel with this mean and biased variance, as
// torch.nn.BatchNorm2d does: all vectors are [K], contiguous and of one dtype, float32 or float64; batches is int64.
void update_running_statistics(Tensor running_mean, Tensor running_var, const OptionalTensor& batches,
                               const Tensor& mean, const Tensor& var, double momentum, int64_t count) {
  STD_TORCH_CHECK(
      mean.dim() == 1 && (mean.scalar_type() == ScalarType::Float || mean.scalar_type() == ScalarType::Double),
      "mean: expected a vector of float32 or float64, got ", describe(mean));
  STD_TORCH_CHECK(count > 1, "count: expected more than one value per channel, got ", count);
  check_statistic(mean, mean, "mean");
  check_statistic(var, mean, "var");
  check_statistic(running_mean, mean, "running_mean");
  check_statistic(running_var, mean, "running_var");
  STD_TORCH_CHECK(
      !batches || (batches->is_cpu() && batches->numel() == 1 && batches->scalar_type() == ScalarType::Long),
      "batches: expected one int64 on the CPU, got ", batches ? describe(*batches) : "nothing");
  const double unbiased = static_cast<double>(count) / static_cast<double>(count - 1);
  const auto update = mean.scalar_type() == ScalarType::Double ? &move_towards<double> : &move_towards<float>;
  update(running_mean, mean, momentum, 1.0);
  update(running_var, var, momentum, unbiased);
  if (batches) ++*static_cast<int64_t*>(batches->mutable_data_ptr());
}

STABLE_TORCH_LIBRARY_IMPL(inception_kernels, CPU, m) {
  m.impl("update_running_statistics", TORCH_BOX(&update_running_statistics));
}

}  // namespace ik
