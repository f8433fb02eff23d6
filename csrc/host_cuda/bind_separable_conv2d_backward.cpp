#include "common/counters.h"
#include "host_cuda/bind.h"
#include "separable_conv2d.h"

namespace ik::host_cuda {
namespace {

struct Call {
  py::object grad_z, x, depthwise_weight, pointwise_weight, depthwise_bias;
  Pair stride, padding, dilation;
  std::string input_activation, mid_activation;
  py::dict wanted;
};

// Tensors are announced to the checker only where `announced`: a question about the workspace touches none.
SeparableBackward arguments(const Call& call, bool announced) {
  const auto sizes = call.depthwise_weight.attr("shape").cast<std::vector<int64_t>>();
  const int64_t K = call.pointwise_weight.attr("shape").cast<std::vector<int64_t>>()[0];
  const auto address = [](const py::object& tensor) {
    return tensor.is_none() ? nullptr : reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
  };
  const auto given = [&](const py::object& tensor, const char* name) -> const void* {
    return announced ? input(tensor, name) : address(tensor);
  };
  const auto weight = [&](const py::object& tensor, const char* name) {
    const auto strides = tensor.attr("stride")().cast<std::vector<int64_t>>();
    return WeightView{given(tensor, name), strides[0], strides[1], strides[2], strides[3]};
  };
  const auto wanted = [&](const char* name) -> void* {
    if (!call.wanted.contains(name)) return nullptr;
    const py::object tensor = call.wanted[name];
    return announced ? output(tensor, name) : address(tensor);
  };
  const py::object grad_x = call.wanted.contains("grad_x") ? py::object(call.wanted["grad_x"]) : py::none();
  return {conv_shape(call.x, K, {sizes[2], sizes[3]}, call.stride, call.padding, call.dilation),
          dtype_of(call.x),
          nhwc_view<NhwcInput>(call.grad_z, given(call.grad_z, "grad_z")),
          nhwc_view<NhwcInput>(call.x, given(call.x, "x")),
          weight(call.depthwise_weight, "depthwise_weight"),
          weight(call.pointwise_weight, "pointwise_weight"),
          given(call.depthwise_bias, "depthwise_bias"),
          activation(call.input_activation),
          activation(call.mid_activation),
          nhwc_view<NhwcOutput>(grad_x, wanted("grad_x")),
          wanted("grad_depthwise_weight"),
          wanted("grad_pointwise_weight"),
          wanted("grad_depthwise_bias")};
}

}  // namespace

PYBIND11_MODULE(IK_HOST_MODULE, module) {
  bind_runtime(module);
  module.def("counted_kernels", &counted_kernels);
  module.def("reset_counted_kernels", &reset_counted_kernels);
  py::class_<Call>(module, "Call")
      .def(py::init<py::object, py::object, py::object, py::object, py::object, Pair, Pair, Pair, std::string,
                    std::string, py::dict>());
  module.def("unsupported", [](const Call& call) {
    const char* reason = cuda::separable_backward_unsupported(arguments(call, false), context());
    return reason == nullptr ? std::optional<std::string>() : reason;
  });
  module.def("workspace_bytes", [](const Call& call) {
    return cuda::separable_backward_workspace_bytes(arguments(call, false), context());
  });
  module.def("backward", [](const Call& call, const py::object& workspace) {
    cuda::separable_backward(arguments(call, true), scratch(workspace, "workspace"), context());
  });
}

}  // namespace ik::host_cuda
