#include "common/checks.h"

#include <sstream>

#include "common/device.h"

namespace ik {

std::string describe(const std::vector<int64_t>& sizes) {
  std::ostringstream out;
  out << "[";
  for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  out << "]";
  return out.str();
}

void check_pair(const Pair& pair, int64_t smallest, const char* name) {
  STD_TORCH_CHECK(pair.size() == 2 && pair[0] >= smallest && pair[1] >= smallest, name,
                  ": expected two integers >= ", smallest, ", got ", describe(pair));
}

Activation activation_code(const std::string& name) {
  static const char* const kNames[] = {"none", "relu", "relu6", "elu", "silu"};
  for (int code = 0; code < 5; ++code) {
    if (name == kNames[code]) return static_cast<Activation>(code);
  }
  STD_TORCH_CHECK(false, "activation: expected none, relu, relu6, elu or silu, got '", name, "'");
}

void check_activations(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(Device::holds(x), name, ": expected a ", Device::name(), " tensor");
  STD_TORCH_CHECK(x.dim() == 4, name, ": expected [N, C, H, W], got ", describe(x));
  dtype_of(x, name);
}

void check_like(const OptionalTensor& tensor, const Tensor& x, const std::vector<int64_t>& sizes, const char* name) {
  if (!tensor) return;
  check_activations(*tensor, name);
  bool same = tensor->scalar_type() == x.scalar_type() && is_beside(*tensor, x);
  for (int64_t i = 0; i < 4; ++i) same = same && tensor->size(i) == sizes[i];
  STD_TORCH_CHECK(same, name, ": expected ", describe(sizes), " of the input's dtype on its device, got ",
                  describe(*tensor));
}

void check_weight(const Tensor& weight, const Tensor& x, int64_t C, const char* name) {
  STD_TORCH_CHECK(is_beside(weight, x) && weight.dim() == 4 && weight.scalar_type() == x.scalar_type() &&
                      weight.size(1) == C && weight.numel() > 0,
                  name, ": expected [K, ", C, ", R, S] on the ", Device::name(), " with the dtype of the input ",
                  describe(x), ", got ", describe(weight));
}

torch::headeronly::ScalarType weight_gradient_type(const Tensor& x, bool float32_weights) {
  if (!float32_weights) return x.scalar_type();
  STD_TORCH_CHECK(x.is_cpu() && x.element_size() == 2, "float32_weights: expected an input of 16 bits on the CPU, got ",
                  describe(x));
  return torch::headeronly::ScalarType::Float;
}

void check_batch_norm(const OptionalTensor& mean, const OptionalTensor& var, const OptionalTensor& bn_weight,
                      const OptionalTensor& bn_bias) {
  STD_TORCH_CHECK(mean.has_value() == var.has_value(), "expected the mean and the variance together, got one of them");
  STD_TORCH_CHECK(mean || (!bn_weight && !bn_bias), "expected statistics with bn_weight and bn_bias, got none");
}

void check_accumulation_vector(const OptionalTensor& vector, const Tensor& x, int64_t K, const char* name) {
  STD_TORCH_CHECK(!vector || (is_beside(*vector, x) && vector->dim() == 1 && vector->size(0) == K &&
                              vector->is_contiguous() && vector->scalar_type() == accumulation_type(dtype_of(x, "x"))),
                  name, ": expected a contiguous ", Device::name(), " vector of ", K,
                  " values in the accumulation type, got ", describe(*vector));
}

void check_packed(const Tensor& packed, const Tensor& x, size_t bytes, const char* name) {
  STD_TORCH_CHECK(is_beside(packed, x) && packed.is_contiguous() &&
                      packed.scalar_type() == torch::headeronly::ScalarType::Byte &&
                      static_cast<size_t>(packed.numel()) == bytes,
                  name, ": expected ", bytes, " packed bytes for this layer and dtype, got ", describe(packed),
                  "; pack the weight again");
}

ConvShape conv_shape(const Tensor& x, int64_t K, int64_t R, int64_t S, const Pair& stride, const Pair& padding,
                     const Pair& dilation) {
  check_pair(stride, 1, "stride");
  check_pair(padding, 0, "padding");
  check_pair(dilation, 1, "dilation");
  const ConvShape shape{x.size(0), x.size(1), x.size(2),  x.size(3),  K,           R,          S,
                        stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1]};
  STD_TORCH_CHECK(shape.C > 0 && shape.H > 0 && shape.W > 0, "x: expected C, H and W of at least 1, got ", describe(x));
  const int64_t window_h = shape.dilation_h * (R - 1) + 1, window_w = shape.dilation_w * (S - 1) + 1;
  STD_TORCH_CHECK(window_h <= shape.H + 2 * shape.pad_h && window_w <= shape.W + 2 * shape.pad_w,
                  "expected a window no larger than the padded input, got a window of ", window_h, " x ", window_w,
                  " over ", shape.H + 2 * shape.pad_h, " x ", shape.W + 2 * shape.pad_w);
  return shape;
}

}  // namespace ik
