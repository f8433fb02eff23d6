#include "host_cuda/bind.h"
#include "update_running_statistics.h"

namespace ik::host_cuda {
namespace {

void update(const py::object& running_mean, const py::object& running_var, const py::object& batches,
            const py::object& mean, const py::object& var, double momentum, int64_t count) {
  cuda::update_running_statistics(
      {mean.attr("numel")().cast<int64_t>(), dtype_of(mean), updated(running_mean, "running_mean"),
       updated(running_var, "running_var"), static_cast<int64_t*>(updated(batches, "batches")), input(mean, "mean"),
       input(var, "var"), momentum, static_cast<double>(count) / static_cast<double>(count - 1)},
      context());
}

}  // namespace

PYBIND11_MODULE(IK_HOST_MODULE, module) {
  bind_runtime(module);
  module.def("update_running_statistics", &update);
}

}  // namespace ik::host_cuda
