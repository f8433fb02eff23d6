#include "common/tensors.h"

#include <cmath>
#include <sstream>

#include "common/counters.h"

namespace ik {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

namespace {

const char* scalar_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    default:
      return "another dtype";
  }
}

float bfloat16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof(value));
  return value;
}

float float16_to_float(uint16_t bits) {
  const uint32_t sign = (bits >> 15) & 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                          : exponent == 0
                              ? std::ldexp(static_cast<float>(fraction), -24)
                              : std::ldexp(static_cast<float>(fraction + 1024), static_cast<int>(exponent) - 25);
  return sign ? -magnitude : magnitude;
}

}  // namespace

DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, float64, bfloat16 or float16, got ", describe(tensor));
  }
}

std::string describe(const Tensor& tensor) {
  std::ostringstream out;
  out << scalar_name(tensor.scalar_type()) << " [";
  for (int64_t i = 0; i < tensor.dim(); ++i) out << (i ? ", " : "") << tensor.size(i);
  out << "]";
  return out.str();
}

bool suggests_channels_last(const Tensor& x) {
  // Strides must grow in the order C, W, H, N; ties between C and N mean contiguous (N1HW and NC11 are ambiguous).
  int64_t smallest = 0;
  if (x.dim() != 4 || x.stride(1) == 0) return false;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) == 0 || x.stride(d) < smallest) return false;
    if (d == 0 && smallest == x.stride(1)) return false;
    smallest = x.stride(d) * (x.size(d) > 1 ? x.size(d) : 1);
  }
  return true;
}

Tensor empty_activations(const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W, bool channels_last) {
  const std::vector<int64_t> sizes{N, C, H, W};
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor empty_cpu(std::vector<int64_t> sizes, ScalarType dtype) { return torch::stable::empty(sizes, dtype); }

Tensor with_adjacent_channels(const Tensor& x) {
  if (x.size(1) == 1 || x.stride(1) == 1) return x;
  count_kernel("layout.to_channels_last");
  return torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
}

Tensor in_memory_format(Tensor y, bool channels_last) {
  // The two formats coincide in memory when one of C and H x W is 1, but their strides still differ.
  if (channels_last) return y;
  if (y.size(1) > 1 && y.size(2) * y.size(3) > 1) count_kernel("layout.to_contiguous");
  return torch::stable::contiguous(y, MemoryFormat::Contiguous);
}

NhwcInput input_view(const Tensor& x) { return {x.const_data_ptr(), x.stride(0), x.stride(2), x.stride(3)}; }

NhwcInput input_view(const OptionalTensor& x) { return x ? input_view(*x) : NhwcInput{}; }

NhwcOutput output_view(const Tensor& y) { return {y.mutable_data_ptr(), y.stride(0), y.stride(2), y.stride(3)}; }

WeightView weight_view(const Tensor& weight) {
  return {weight.const_data_ptr(), weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
}

ScalarType accumulation_type(DType dtype) { return dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float; }

ChannelVector::ChannelVector(DType dtype, const std::vector<double>& values) {
  if (dtype == DType::kFloat64) {
    double_ = values;
  } else {
    float_.assign(values.begin(), values.end());
  }
}

const void* ChannelVector::data() const {
  if (!double_.empty()) return double_.data();
  return float_.empty() ? nullptr : float_.data();
}

std::vector<double> channel_values(const OptionalTensor& vector, int64_t length, const char* name) {
  if (!vector) return {};
  STD_TORCH_CHECK(vector->dim() == 1 && vector->size(0) == length, name, ": expected [", length, "], got ",
                  describe(*vector));
  STD_TORCH_CHECK(vector->is_cpu(), name, ": expected a CPU tensor");
  std::vector<double> values(length);
  const int64_t stride = vector->stride(0);
  const DType dtype = dtype_of(*vector, name);
  const void* data = vector->const_data_ptr();
  for (int64_t i = 0; i < length; ++i) {
    switch (dtype) {
      case DType::kFloat32:
        values[i] = static_cast<const float*>(data)[i * stride];
        break;
      case DType::kFloat64:
        values[i] = static_cast<const double*>(data)[i * stride];
        break;
      case DType::kBFloat16:
        values[i] = bfloat16_to_float(static_cast<const uint16_t*>(data)[i * stride]);
        break;
      case DType::kFloat16:
        values[i] = float16_to_float(static_cast<const uint16_t*>(data)[i * stride]);
        break;
    }
  }
  return values;
}

ScaleShift fold_batch_norm(DType dtype, int64_t K, const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                           const OptionalTensor& mean, const OptionalTensor& var, const OptionalTensor& bias,
                           double eps) {
  std::vector<double> shift = channel_values(bias, K, "bias");
  if (!mean) return {ChannelVector(), ChannelVector(dtype, shift)};
  const std::vector<double> gamma = channel_values(bn_weight, K, "bn_weight");
  const std::vector<double> beta = channel_values(bn_bias, K, "bn_bias");
  const std::vector<double> centre = channel_values(mean, K, "running_mean");
  const std::vector<double> spread = channel_values(var, K, "running_var");
  std::vector<double> scale(K);
  shift.resize(K, 0.0);
  for (int64_t k = 0; k < K; ++k) {
    scale[k] = (gamma.empty() ? 1.0 : gamma[k]) / std::sqrt(spread[k] + eps);
    shift[k] = (shift[k] - centre[k]) * scale[k] + (beta.empty() ? 0.0 : beta[k]);
  }
  return {ChannelVector(dtype, scale), ChannelVector(dtype, shift)};
}

}  // namespace ik
