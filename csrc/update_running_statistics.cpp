#include "update_running_statistics.h"

#include "common/checks.h"
#include "common/device.h"
#include "operators.h"

namespace ik {

namespace {

using torch::headeronly::ScalarType;

void check_statistic(const Tensor& tensor, const Tensor& mean, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == mean.size(0) && is_beside(tensor, mean) &&
                      tensor.scalar_type() == mean.scalar_type() && tensor.is_contiguous(),
                  name, ": expected a contiguous ", Device::name(), " tensor like mean ", describe(mean), ", got ",
                  describe(tensor));
}

}  // namespace

// What a batch norm remembers of a batch of `count` > 1 values per channel with this mean and biased variance, as
// torch.nn.BatchNorm2d does: all vectors are [K], contiguous and of one dtype, float32 or (on the CPU) float64; batches
// is int64.
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
      !batches || (is_beside(*batches, mean) && batches->numel() == 1 && batches->scalar_type() == ScalarType::Long),
      "batches: expected one int64 beside mean, got ", batches ? describe(*batches) : "nothing");
  const Device device(mean, Device::kVectors);
  device.update_running_statistics(
      {mean.size(0), dtype_of(mean, "mean"), running_mean.mutable_data_ptr(), running_var.mutable_data_ptr(),
       batches ? static_cast<int64_t*>(batches->mutable_data_ptr()) : nullptr, mean.const_data_ptr(),
       var.const_data_ptr(), momentum, static_cast<double>(count) / static_cast<double>(count - 1)});
}

void register_update_running_statistics(Library& m) {
  m.impl("update_running_statistics", TORCH_BOX(&update_running_statistics));
}

}  // namespace ik
