#include "cpu/empty.h"

#include <torch/csrc/stable/ops.h>

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

// Negative where 64 bits do not hold it.
int64_t bytes_of(const std::vector<int64_t>& sizes, ScalarType dtype) {
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
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
  for (size_t d = sizes.size(); d-- > 0; stride *= sizes[d]) strides[d] = stride;
  return strides;
}

}  // namespace

bool keep_memory(bool enabled) { return keeps.exchange(enabled); }
void fill_memory(bool enabled) { fills = enabled; }

Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype, MemoryFormat format) {
  const int64_t bytes = bytes_of(sizes, dtype);
  STD_TORCH_CHECK(bytes >= 0, "expected an output of less than 2^63 bytes, got ", describe(sizes));
  if (!keeps || bytes < kSmallest) {
    return torch::stable::empty(sizes, dtype, std::nullopt, std::nullopt, std::nullopt, format);
  }
  void* data = take_memory(static_cast<size_t>(bytes));
  STD_TORCH_CHECK(data, "not enough memory for an output ", describe(sizes), " of ", bytes, " bytes");
  if (fills) std::memset(data, 0xff, bytes);
  return torch::stable::from_blob(data, sizes, strides_of(sizes, format),
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype, &give_memory);
}

}  // namespace ik::cpu
