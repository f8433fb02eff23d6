#include "cpu/empty.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstring>

#include "common/checks.h"
#include "common/empty.h"
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

}  // namespace

bool keep_memory(bool enabled) { return keeps.exchange(enabled); }
void fill_memory(bool enabled) { fills = enabled; }

Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype, MemoryFormat format) {
  const int64_t bytes = bytes_of(sizes, dtype);
  const std::vector<int64_t> strides = strides_of(sizes, format);
  if (!keeps || bytes < kSmallest) {
    const Tensor tensor = allocate(sizes, strides, dtype, aoti_torch_device_type_cpu(), 0);
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
