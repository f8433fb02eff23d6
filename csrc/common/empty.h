// PyTorch's memory, from the allocator of the tensor's device.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <vector>

namespace ik {

// Contiguous or, with four dimensions, channels-last.
std::vector<int64_t> strides_of(const std::vector<int64_t>& sizes, torch::headeronly::MemoryFormat format);
// Throws where 64 bits do not hold them.
int64_t bytes_of(const std::vector<int64_t>& sizes, torch::headeronly::ScalarType dtype);
// Uninitialised. `device_type` is of AOTInductor's numbers.
torch::stable::Tensor allocate(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                               torch::headeronly::ScalarType dtype, int32_t device_type, int32_t device_index);

}  // namespace ik
