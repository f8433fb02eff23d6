#include "exchanges.h"
#include "host_cuda/bind.h"

namespace ik::host_cuda {
namespace {

using Kernel = void (*)(const float* x, float* y, const cuda::Context& context);

void define(py::module_& module, const char* name, Kernel kernel) {
  module.def(name, [kernel](const py::object& x, const py::object& y) {
    kernel(static_cast<const float*>(input(x, "x")), static_cast<float*>(output(y, "y")), context());
  });
}

}  // namespace

PYBIND11_MODULE(IK_HOST_MODULE, module) {
  bind_runtime(module);
  define(module, "copy_by_widths", cuda::copy_by_widths);
  define(module, "hand_over_at_named_barriers", cuda::hand_over_at_named_barriers);
  define(module, "multicast", cuda::multicast);
  define(module, "reverse_across_cluster", cuda::reverse_across_cluster);
}

}  // namespace ik::host_cuda
