// Where the CUDA operators get their device, stream, precision and memory from: PyTorch's current ones. runtime.cpp
// asks PyTorch and the driver; the tests that execute kernels on the host link another definition.
#pragma once
#include <memory>
#include <vector>

#include "common/tensors.h"
#include "cuda/context.h"

namespace ik::cuda {

const char* device_name();
bool holds(const Tensor& tensor);
// Makes the tensor's device current; the previous one returns when the last copy of the result is gone.
std::shared_ptr<void> make_current(const Tensor& tensor);
// The stream and the properties of the tensor's device, which is current; PyTorch's precision flag where there will be
// products. Throws where PyTorch has no CUDA.
Context context_of(const Tensor& tensor, bool products);
// Uninitialised, on the neighbour's device.
Tensor empty(const Tensor& neighbour, const std::vector<int64_t>& sizes, torch::headeronly::ScalarType dtype,
             torch::headeronly::MemoryFormat format);

}  // namespace ik::cuda
