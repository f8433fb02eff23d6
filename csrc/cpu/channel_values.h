// Per-channel vectors on the host, in double: what batch norm folds with.
#pragma once
#include <vector>

#include "common/tensors.h"

namespace ik::cpu {

// The values of a 1-d floating tensor of any precision; empty when not given.
std::vector<double> channel_values(const OptionalTensor& vector, int64_t length, const char* name);
// The same values in the accumulation type; missing when there are none.
OptionalTensor channel_tensor(const std::vector<double>& values, DType dtype);

}  // namespace ik::cpu
