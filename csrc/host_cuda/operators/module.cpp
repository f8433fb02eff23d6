// The operators with their CUDA bodies and launchers on CPU tensors, for the tests: the kernels execute on the host, so
// everything between torch.ops and the launch is what runs on a GPU, but for the device, the stream and the allocator.
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/empty.h"
#include "cuda/precision.h"
#include "cuda/runtime.h"
#include "host_cuda/session.h"
#include "operators.h"

namespace ik {

namespace {

struct Settings {
  int sm = 80;
  int multiprocessors = 4;
  bool allow_tf32 = false;
};

bool executes = true;

Settings& settings() {
  static Settings current;
  return current;
}

std::string& collected_reports() {
  static std::string text;
  return text;
}

void end_session() {
  for (const std::string& report : host_cuda::end()) collected_reports() += report + "\n";
}

}  // namespace

namespace cuda {

const char* device_name() { return "CPU"; }

bool holds(const Tensor& tensor) { return tensor.is_cpu(); }

std::shared_ptr<void> make_current(const Tensor&) {
  host_cuda::begin(host_cuda::Schedule{}, false, executes);
  return {&settings(), [](void*) { end_session(); }};
}

bool allows_tf32() { return settings().allow_tf32; }

Context context_of(const Tensor&, bool) {
  return {nullptr, settings().sm, settings().multiprocessors, settings().allow_tf32};
}

Tensor empty(const Tensor&, const std::vector<int64_t>& sizes, torch::headeronly::ScalarType dtype,
             torch::headeronly::MemoryFormat format) {
  return cpu::empty(sizes, dtype, format);
}

}  // namespace cuda
}  // namespace ik

STABLE_TORCH_LIBRARY_IMPL(inception_kernels, CPU, m) {
  ik::register_conv2d_bn_act(m);
  ik::register_separable_conv2d(m);
  ik::register_asymmetric_pair(m);
  ik::register_batch_norm(m);
  ik::register_update_running_statistics(m);
}

// Called through ctypes.

extern "C" __attribute__((visibility("default"))) void ik_set_context(int sm, int multiprocessors, bool allow_tf32) {
  ik::settings() = {sm, multiprocessors, allow_tf32};
}

// Whether kernels that are launched are executed; without, what is left is the host's part of a call.
extern "C" __attribute__((visibility("default"))) void ik_set_execution(bool enabled) { ik::executes = enabled; }

extern "C" __attribute__((visibility("default"))) const char* ik_reports() {
  static std::string returned;
  returned.swap(ik::collected_reports());
  ik::collected_reports().clear();
  return returned.c_str();
}
