#include "common/empty.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "common/checks.h"

namespace ik {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

int32_t type_code(ScalarType dtype) { return torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)); }

}  // namespace

std::vector<int64_t> strides_of(const std::vector<int64_t>& sizes, MemoryFormat format) {
  if (format == MemoryFormat::ChannelsLast) {
    return {sizes[1] * sizes[2] * sizes[3], 1, sizes[1] * sizes[3], sizes[1]};
  }
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= std::max<int64_t>(1, sizes[d])) strides[d] = stride;
  return strides;
}

int64_t bytes_of(const std::vector<int64_t>& sizes, ScalarType dtype) {
  int64_t bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(type_code(dtype)));
  bool fits = true;
  for (const int64_t size : sizes) fits = fits && !__builtin_mul_overflow(bytes, size, &bytes);
  STD_TORCH_CHECK(fits, "expected an output of less than 2^63 bytes, got ", describe(sizes));
  return bytes;
}

Tensor allocate(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype,
                int32_t device_type, int32_t device_index) {
  // Not torch::stable::empty(): the way through the dispatcher by name takes longer than many a layer's sums.
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  type_code(dtype), device_type, device_index, &made));
  return Tensor(made);
}

}  // namespace ik
