// The operators' contract. The Python layer says the same things with Python exceptions; these guard direct calls of
// the dispatcher operators, so that no kernel ever starts on tensors it cannot read.
#pragma once
#include <string>
#include <vector>

#include "common/tensors.h"

namespace ik {

Activation activation_code(const std::string& name);

// [N, C, H, W] on the device, of a dtype the kernels know.
void check_activations(const Tensor& x, const char* name);
// Expects exactly this shape, x's dtype and x's device.
void check_like(const OptionalTensor& tensor, const Tensor& x, const std::vector<int64_t>& sizes, const char* name);
// weight [K, C, R, S] of x's dtype, on x's device.
void check_weight(const Tensor& weight, const Tensor& x, int64_t C, const char* name);
// Of the gradients of weights: x's dtype, or float32.
torch::headeronly::ScalarType weight_gradient_type(const Tensor& x, bool float32_weights);
void check_batch_norm(const OptionalTensor& mean, const OptionalTensor& var, const OptionalTensor& bn_weight,
                      const OptionalTensor& bn_bias);

// scale and shift of a prepared layer: [K], contiguous, in the accumulation type of x.
void check_accumulation_vector(const OptionalTensor& vector, const Tensor& x, int64_t K, const char* name);
void check_packed(const Tensor& packed, const Tensor& x, size_t bytes, const char* name);

std::string describe(const std::vector<int64_t>& sizes);  // "[3, 3]"

using Pair = std::vector<int64_t>;
void check_pair(const Pair& pair, int64_t smallest, const char* name);
// Geometry with every parameter checked; the output has at least one pixel.
ConvShape conv_shape(const Tensor& x, int64_t K, int64_t R, int64_t S, const Pair& stride, const Pair& padding,
                     const Pair& dilation);

}  // namespace ik
