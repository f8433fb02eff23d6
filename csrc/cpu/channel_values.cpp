#include "cpu/channel_values.h"

#include <algorithm>
#include <cmath>

#include "cpu/empty.h"

namespace ik::cpu {

namespace {

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

template <typename T, typename Convert>
std::vector<double> converted(const Tensor& vector, const Convert& convert) {
  std::vector<double> values(vector.size(0));
  const T* data = static_cast<const T*>(vector.const_data_ptr());
  const int64_t stride = vector.stride(0);
  for (double& value : values) {
    value = convert(*data);
    data += stride;
  }
  return values;
}

}  // namespace

std::vector<double> channel_values(const OptionalTensor& vector, int64_t length, const char* name) {
  if (!vector) return {};
  check_channel_vector(*vector, length, name);
  switch (dtype_of(*vector, name)) {
    case DType::kFloat32:
      return converted<float>(*vector, [](float value) { return value; });
    case DType::kFloat64:
      return converted<double>(*vector, [](double value) { return value; });
    case DType::kBFloat16:
      return converted<uint16_t>(*vector, bfloat16_to_float);
    default:
      return converted<uint16_t>(*vector, float16_to_float);
  }
}

OptionalTensor channel_tensor(const std::vector<double>& values, DType dtype) {
  if (values.empty()) return std::nullopt;
  const Tensor tensor = empty({static_cast<int64_t>(values.size())}, accumulation_type(dtype),
                              torch::headeronly::MemoryFormat::Contiguous);
  if (dtype == DType::kFloat64) {
    std::copy(values.begin(), values.end(), static_cast<double*>(tensor.mutable_data_ptr()));
  } else {
    std::transform(values.begin(), values.end(), static_cast<float*>(tensor.mutable_data_ptr()),
                   [](double value) { return static_cast<float>(value); });
  }
  return tensor;
}

}  // namespace ik::cpu
