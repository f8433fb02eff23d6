#include "cpu/channel_values.h"

#include <algorithm>
#include <cmath>

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

}  // namespace

std::vector<double> channel_values(const OptionalTensor& vector, int64_t length, const char* name) {
  if (!vector) return {};
  check_channel_vector(*vector, length, name);
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

OptionalTensor channel_tensor(const std::vector<double>& values, DType dtype) {
  if (values.empty()) return std::nullopt;
  const Tensor tensor = empty_cpu({static_cast<int64_t>(values.size())}, accumulation_type(dtype));
  if (dtype == DType::kFloat64) {
    std::copy(values.begin(), values.end(), static_cast<double*>(tensor.mutable_data_ptr()));
  } else {
    std::transform(values.begin(), values.end(), static_cast<float*>(tensor.mutable_data_ptr()),
                   [](double value) { return static_cast<float>(value); });
  }
  return tensor;
}

}  // namespace ik::cpu
