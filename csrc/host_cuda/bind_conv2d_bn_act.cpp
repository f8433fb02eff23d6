#include "common/counters.h"
#include "conv2d_bn_act.h"
#include "host_cuda/bind.h"

namespace ik::host_cuda {
namespace {

struct Window {
  Pair size, stride, padding, dilation;
};

Window window(const py::dict& given) {
  const auto pair = [&](const char* name) { return given[name].cast<Pair>(); };
  return {pair("window"), pair("stride"), pair("padding"), pair("dilation")};
}

// A question about a call does not write y.
enum class Purpose { kLaunch, kQuestion };

Conv2dForward arguments(Purpose purpose, const py::object& x, const py::object& packed, const py::object& scale,
                        const py::object& shift, const py::object& residual, const std::string& act,
                        const py::object& y, const py::dict& given) {
  const Window w = window(given);
  const int64_t K = y.attr("shape").cast<std::vector<int64_t>>()[1];
  return {conv_shape(x, K, w.size, w.stride, w.padding, w.dilation),
          dtype_of(x),
          nhwc_input(x, "x"),
          input(packed, "packed"),
          input(scale, "scale"),
          input(shift, "shift"),
          nhwc_input(residual, "residual"),
          activation(act),
          nhwc_view<NhwcOutput>(
              y, announce_tensor(y, "y", purpose == Purpose::kLaunch ? Access::kOutput : Access::kInput))};
}

ConvShape weight_shape(const py::object& weight) {
  const auto sizes = weight.attr("shape").cast<std::vector<int64_t>>();
  return {0, sizes[1], 0, 0, sizes[0], sizes[2], sizes[3], 1, 1, 0, 0, 1, 1};
}

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
  module.def("unsupported",
             [](const py::object& x, const py::object& packed, const py::object& scale, const py::object& shift,
                const py::object& residual, const std::string& act, const py::object& y, const py::dict& given) {
               const char* reason = cuda::conv2d_unsupported(
                   arguments(Purpose::kQuestion, x, packed, scale, shift, residual, act, y, given), context());
               return reason ? std::string(reason) : std::string();
             });
  module.def("workspace_bytes", [](const py::object& x, const py::object& packed, const py::object& shift,
                                   const py::object& y, bool statistics, const py::dict& given) {
    const py::none none;
    return cuda::conv2d_workspace_bytes(arguments(Purpose::kQuestion, x, packed, none, shift, none, "none", y, given),
                                        statistics, context());
  });
  module.def("forward", [](const py::object& x, const py::object& packed, const py::object& scale,
                           const py::object& shift, const py::object& residual, const std::string& act,
                           const py::object& y, const py::object& workspace, const py::dict& given) {
    cuda::conv2d_forward(arguments(Purpose::kLaunch, x, packed, scale, shift, residual, act, y, given),
                         scratch(workspace, "workspace"), context());
  });
  module.def("forward_statistics", [](const py::object& x, const py::object& packed, const py::object& shift,
                                      const py::object& y, const py::object& mean, const py::object& var,
                                      const py::object& workspace, const py::dict& given) {
    const py::none none;
    cuda::conv2d_forward_statistics(arguments(Purpose::kLaunch, x, packed, none, shift, none, "none", y, given),
                                    static_cast<float*>(output(mean, "mean")), static_cast<float*>(output(var, "var")),
                                    scratch(workspace, "workspace"), context());
  });
}

}  // namespace ik::host_cuda
