#include "cuda/runtime.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/empty.h"
#include "cuda/device_properties.h"
#include "cuda/precision.h"

namespace ik::cuda {

namespace {

using torch::stable::accelerator::DeviceGuard;
using CurrentStream = AOTITorchError (*)(int32_t device, void** stream);

// Only a CUDA build of PyTorch has this function. It is looked up so that this library loads beside any build, and in
// torch's own library because that one is not in the global scope.
CurrentStream find_current_stream() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  return reinterpret_cast<CurrentStream>(symbol);
}

void* current_stream(int device) {
  static const CurrentStream function = find_current_stream();
  STD_TORCH_CHECK(function != nullptr, "this PyTorch has no CUDA streams: install a CUDA build of it");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return stream;
}

}  // namespace

const char* device_name() { return "CUDA"; }

bool holds(const Tensor& tensor) { return tensor.is_cuda(); }

std::shared_ptr<void> make_current(const Tensor& tensor) {
  auto guard = std::make_shared<DeviceGuard>(tensor.get_device_index());
  set_device(tensor.get_device_index());
  return guard;
}

Context context_of(const Tensor& tensor, bool products) {
  const int device = tensor.get_device_index();
  const bool products_may_be_tf32 = products && dtype_of(tensor, "x") == DType::kFloat32 && allows_tf32();
  const DeviceProperties properties = device_properties(device);
  return {current_stream(device), properties.sm, properties.multiprocessors, products_may_be_tf32};
}

Tensor empty(const Tensor& neighbour, const std::vector<int64_t>& sizes, torch::headeronly::ScalarType dtype,
             torch::headeronly::MemoryFormat format) {
  bytes_of(sizes, dtype);  // refuses what strides would overflow with
  return allocate(sizes, strides_of(sizes, format), dtype, aoti_torch_device_type_cuda(), neighbour.get_device_index());
}

}  // namespace ik::cuda
