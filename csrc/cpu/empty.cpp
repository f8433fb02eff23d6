#include "cpu/empty.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "common/checks.h"
#include "cpu/memory.h"

namespace ik::cpu {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr int64_t kSmallest = 16384;  // bytes; malloc keeps smaller blocks itself

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeepsAtFirst = false;  // an access beyond a tensor must meet the sanitizer's allocator
#else
constexpr bool kKeepsAtFirst = true;
#endif
std::atomic<bool> keeps{kKeepsAtFirst}, fills{false};

int32_t type_code(ScalarType dtype) { return torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)); }

// Negative where 64 bits do not hold it.
int64_t bytes_of(const std::vector<int64_t>& sizes, int32_t type) {
  int64_t bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(type));
  for (const int64_t size : sizes)
    if (__builtin_mul_overflow(bytes, size, &bytes)) return -1;
  return bytes;
}

std::vector<int64_t> strides_of(const std::vector<int64_t>& sizes, MemoryFormat format) {
  if (format == MemoryFormat::ChannelsLast) {
    return {sizes[1] * sizes[2] * sizes[3], 1, sizes[1] * sizes[3], sizes[1]};
  }
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= std::max<int64_t>(1, sizes[d])) strides[d] = stride;
  return strides;
}

}  // namespace

bool keep_memory(bool enabled) { return keeps.exchange(enabled); }
void fill_memory(bool enabled) { fills = enabled; }

Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype, MemoryFormat format) {
  const int32_t type = type_code(dtype);
  const int64_t bytes = bytes_of(sizes, type);
  STD_TORCH_CHECK(bytes >= 0, "expected an output of less than 2^63 bytes, got ", describe(sizes));
  const std::vector<int64_t> strides = strides_of(sizes, format);
  if (!keeps || bytes < kSmallest) {
    // Not torch::stable::empty(): the way through the dispatcher by name takes longer than many a layer's sums.
    AtenTensorHandle made = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                           strides.data(), type, aoti_torch_device_type_cpu(), 0,
                                                           &made));
    const Tensor tensor(made);
    if (fills && bytes > 0) std::memset(tensor.mutable_data_ptr(), 0xff, bytes);
    return tensor;
  }
  void* data = take_memory(static_cast<size_t>(bytes));
  STD_TORCH_CHECK(data, "not enough memory for an output ", describe(sizes), " of ", bytes, " bytes");
  if (fills) std::memset(data, 0xff, bytes);
  return torch::stable::from_blob(data, sizes, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                  dtype, &give_memory);
}

}  // namespace ik::cpu
