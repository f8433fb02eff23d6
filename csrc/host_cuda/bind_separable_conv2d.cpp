#include "common/counters.h"
#include "host_cuda/bind.h"
#include "separable_conv2d.h"

namespace ik::host_cuda {
namespace {

struct Geometry {
  Pair window, stride, padding, dilation;

  explicit Geometry(const py::dict& geometry)
      : window(geometry["window"].cast<Pair>()),
        stride(geometry["stride"].cast<Pair>()),
        padding(geometry["padding"].cast<Pair>()),
        dilation(geometry["dilation"].cast<Pair>()) {}

  ConvShape shape(const py::object& x, int64_t K) const { return conv_shape(x, K, window, stride, padding, dilation); }
};

int64_t channels(const py::object& tensor) { return tensor.attr("shape").cast<std::vector<int64_t>>().at(1); }

// What only asks about a launch writes nothing.
enum class Use { kLaunch, kQuery };

// tensors: x, depthwise, pointwise (packed), y; perhaps depthwise_bias, scale, shift, residual.
SeparableForward forward_args(const py::dict& tensors, const py::dict& geometry,
                              const std::vector<std::string>& activations, Use use) {
  const auto tensor = [&](const char* name) -> py::object {
    return tensors.contains(name) ? py::object(tensors[name]) : py::none();
  };
  const auto given = [&](const char* name) { return input(tensor(name), name); };
  const py::object x = tensor("x");
  const py::object y = tensor("y");
  return {Geometry(geometry).shape(x, channels(y)),
          dtype_of(x),
          nhwc_input(x, "x"),
          given("depthwise"),
          given("pointwise"),
          given("depthwise_bias"),
          given("scale"),
          given("shift"),
          nhwc_input(tensor("residual"), "residual"),
          activation(activations.at(0)),
          activation(activations.at(1)),
          activation(activations.at(2)),
          nhwc_view<NhwcOutput>(y, use == Use::kLaunch ? output(y, "y") : scratch(y, "y"))};
}

// depthwise [C, 1, R, S]; the rest of the shape does not matter.
ConvShape weight_shape(const py::object& depthwise, int64_t K) {
  const auto sizes = depthwise.attr("shape").cast<std::vector<int64_t>>();
  return {0, sizes[0], 0, 0, K, sizes[2], sizes[3], 1, 1, 0, 0, 1, 1};
}

void pack(const py::object& depthwise, const py::object& pointwise, const py::object& packed_depthwise,
          const py::object& packed_pointwise) {
  const int64_t K = pointwise.attr("shape").cast<std::vector<int64_t>>().at(0);
  cuda::separable_pack(weight_shape(depthwise, K), dtype_of(depthwise), weight_view(depthwise, "depthwise_weight"),
                       weight_view(pointwise, "pointwise_weight"), output(packed_depthwise, "packed_depthwise"),
                       output(packed_pointwise, "packed_pointwise"), context());
}

}  // namespace

PYBIND11_MODULE(IK_HOST_MODULE, module) {
  bind_runtime(module);
  module.def("packed_bytes", [](const py::object& depthwise, int64_t K) {
    const ConvShape shape = weight_shape(depthwise, K);
    return std::make_pair(cuda::separable_packed_depthwise_bytes(shape, dtype_of(depthwise)),
                          cuda::separable_packed_pointwise_bytes(shape, dtype_of(depthwise)));
  });
  module.def("pack", &pack);
  module.def("unsupported",
             [](const py::dict& tensors, const py::dict& geometry, const std::vector<std::string>& activations) {
               const char* reason =
                   cuda::separable_unsupported(forward_args(tensors, geometry, activations, Use::kQuery), context());
               return std::string(reason ? reason : "");
             });
  module.def("workspace_bytes", [](const py::dict& tensors, const py::dict& geometry,
                                   const std::vector<std::string>& activations, bool statistics) {
    return cuda::separable_workspace_bytes(forward_args(tensors, geometry, activations, Use::kQuery), statistics,
                                           context());
  });
  module.def("forward", [](const py::dict& tensors, const py::dict& geometry,
                           const std::vector<std::string>& activations, const py::object& workspace) {
    cuda::separable_forward(forward_args(tensors, geometry, activations, Use::kLaunch), scratch(workspace, "workspace"),
                            context());
  });
  module.def("forward_statistics", [](const py::dict& tensors, const py::dict& geometry,
                                      const std::vector<std::string>& activations, const py::object& mean,
                                      const py::object& var, const py::object& workspace) {
    cuda::separable_forward_statistics(
        forward_args(tensors, geometry, activations, Use::kLaunch), static_cast<float*>(output(mean, "mean")),
        static_cast<float*>(output(var, "var")), scratch(workspace, "workspace"), context());
  });
  module.def("counted_kernels", &counted_kernels);
  module.def("reset_counted_kernels", &reset_counted_kernels);
}

}  // namespace ik::host_cuda
