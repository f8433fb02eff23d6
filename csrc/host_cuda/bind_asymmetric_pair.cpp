#include "common/counters.h"
#include "conv2d_bn_act.h"
#include "host_cuda/asymmetric_pair_arguments.h"

namespace ik::host_cuda {
namespace {

ConvShape weight_shape(const py::object& weight) {
  const std::vector<int64_t> sizes = sizes_of(weight);
  return {0, sizes[1], 0, 0, sizes[0], sizes[2], sizes[3], 1, 1, 0, 0, 1, 1};
}

std::string text_of(const char* reason) { return reason ? reason : ""; }

}  // namespace

PYBIND11_MODULE(IK_HOST_MODULE, module) {
  bind_runtime(module);
  module.def("counted_kernels", &counted_kernels);
  module.def("reset_counted_kernels", &reset_counted_kernels);
  module.def("packed_bytes", [](const py::object& weight) {
    return cuda::conv2d_packed_bytes(weight_shape(weight), dtype_of(weight));
  });
  module.def("pack", [](const py::object& weight, const py::object& packed) {
    cuda::conv2d_pack(weight_shape(weight), dtype_of(weight), weight_view(weight, "weight"), output(packed, "packed"),
                      context());
  });
  module.def(
      "unsupported", [](const py::object& x, const py::dict& first, const py::dict& second, const py::object& y) {
        return text_of(
            cuda::asymmetric_pair_unsupported(pair_arguments(Purpose::kQuestion, x, first, second, y), context()));
      });
  module.def(
      "split_reason", [](const py::object& x, const py::dict& first, const py::dict& second, const py::object& y) {
        return text_of(
            cuda::asymmetric_pair_split_reason(pair_arguments(Purpose::kQuestion, x, first, second, y), context()));
      });
  module.def("workspace_bytes", [](const py::object& x, const py::dict& first, const py::dict& second,
                                   const py::object& y) {
    return cuda::asymmetric_pair_workspace_bytes(pair_arguments(Purpose::kQuestion, x, first, second, y), context());
  });
  module.def("forward", [](const py::object& x, const py::dict& first, const py::dict& second, const py::object& y,
                           const py::object& workspace) {
    cuda::asymmetric_pair_forward(pair_arguments(Purpose::kLaunch, x, first, second, y),
                                  scratch(workspace, "workspace"), context());
  });
}

}  // namespace ik::host_cuda
