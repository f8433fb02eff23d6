// Tensors in the memory of cpu/memory.h.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <vector>

namespace ik::cpu {

// Whether empty() takes memory that is kept (as at the start, but for builds with AddressSanitizer), or PyTorch's
// allocator gives it; returns what held before. Of the process, as the next.
bool keep_memory(bool enabled);
// Whether kept memory is filled with bytes of ones, which are NaN in every floating dtype: for tests, as
// torch.utils.deterministic.fill_uninitialized_memory does not reach it.
void fill_memory(bool enabled);

// Uninitialised, contiguous or (four dimensions) channels-last. Its storage cannot be resized.
torch::stable::Tensor empty(const std::vector<int64_t>& sizes, torch::headeronly::ScalarType dtype,
                            torch::headeronly::MemoryFormat format);

}  // namespace ik::cpu
