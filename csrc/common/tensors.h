// What the operators need of a torch::stable::Tensor: dtype, memory format, views and allocation.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "common/types.h"

namespace ik {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

DType dtype_of(const Tensor& tensor, const char* name);
std::string describe(const Tensor& tensor);  // "float32 [2, 3, 8, 8]"

// torch.nn.functional.conv2d's own rule for the memory format of its output.
bool suggests_channels_last(const Tensor& x);

// Uninitialised [N, C, H, W] of the dtype, or that of `like`, on the device of `like`.
Tensor empty_activations(const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W, bool channels_last);
Tensor empty_activations(const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W, bool channels_last,
                         torch::headeronly::ScalarType dtype);
// Uninitialised, contiguous, of the given dtype, on the neighbour's device.
Tensor empty_on(const Tensor& neighbour, std::vector<int64_t> sizes, torch::headeronly::ScalarType dtype);
Tensor empty_cpu(std::vector<int64_t> sizes, torch::headeronly::ScalarType dtype);

// The tensor itself where its channels are adjacent, else a channels-last copy (counted as "layout.to_channels_last").
Tensor with_adjacent_channels(const Tensor& x);
// A contiguous copy where the caller's memory format asks for one (counted as "layout.to_contiguous").
Tensor in_memory_format(Tensor y, bool channels_last);

NhwcInput input_view(const Tensor& x);
NhwcInput input_view(const OptionalTensor& x);
NhwcOutput output_view(const Tensor& y);
WeightView weight_view(const Tensor& weight);
WeightOutput weight_output(const Tensor& weight);

torch::headeronly::ScalarType accumulation_type(DType dtype);

// Whether both are on one device, and that is one of this extension's.
bool is_beside(const Tensor& tensor, const Tensor& x);

// A vector [length] of any floating dtype on the operator's device.
void check_channel_vector(const Tensor& vector, int64_t length, const char* name);
// The vector contiguous in the accumulation type: itself where it is that already.
OptionalTensor channel_vector(const OptionalTensor& vector, int64_t length, DType dtype, const char* name);
const void* data_or_null(const OptionalTensor& tensor);

}  // namespace ik
