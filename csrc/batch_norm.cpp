#include "batch_norm.h"

#include "common/batch_norm_ops.h"
#include "common/checks.h"
#include "common/device.h"
#include "operators.h"

namespace ik {

// act(BN(z) + residual) with these statistics, in z's memory format: for a convolution whose raw output z a gradient
// will need.
Tensor batch_norm(const Tensor& z, const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const Tensor& mean,
                  const Tensor& var, const OptionalTensor& residual, std::string activation, double eps) {
  check_activations(z, "z");
  check_like(residual, z, {z.size(0), z.size(1), z.size(2), z.size(3)}, "residual");
  const Activation code = activation_code(activation);
  const Device device(z, Device::kVectors);
  const Tensor y = normalize(device, with_adjacent_channels(z), mean, var, bn_weight, bn_bias, residual, code, eps);
  return in_memory_format(y, suggests_channels_last(z));
}

void register_batch_norm(Library& m) { m.impl("batch_norm", TORCH_BOX(&batch_norm)); }

}  // namespace ik
