#include "cuda/separable_conv2d_sm90.h"
#include "host_cuda/bind.h"

namespace ik::host_cuda {
namespace {

void* address(const py::object& tensor) {
  return tensor.is_none() ? nullptr : reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
}

// What one call is about, as the tests give it: a dictionary of tensors and settings.
SeparableForward forward_args(const py::dict& call) {
  const py::object x = call["x"];
  const py::object y = call["y"];
  const auto pair = [&](const char* name) { return call[name].cast<Pair>(); };
  const auto act = [&](const char* name) { return activation(call[name].cast<std::string>()); };
  const auto pointer = [&](const char* name) { return address(call[name]); };
  const int64_t K = y.attr("shape").cast<std::vector<int64_t>>()[1];
  SeparableForward args = {};
  args.shape = conv_shape(x, K, pair("window"), pair("stride"), pair("padding"), pair("dilation"));
  args.dtype = dtype_of(x);
  args.x = nhwc_view<NhwcInput>(x, address(x));
  args.packed_depthwise = pointer("depthwise");
  args.packed_pointwise = pointer("pointwise");
  args.depthwise_bias = pointer("depthwise_bias");
  args.scale = pointer("scale");
  args.shift = pointer("shift");
  args.residual = nhwc_view<NhwcInput>(call["residual"], pointer("residual"));
  args.input_activation = act("input_activation");
  args.mid_activation = act("mid_activation");
  args.activation = act("activation");
  args.y = nhwc_view<NhwcOutput>(y, address(y));
  return args;
}

// The same for a launch: the checker learns of the tensors.
SeparableForward announced_args(const py::dict& call) {
  for (const char* name : {"x", "depthwise", "pointwise", "depthwise_bias", "scale", "shift", "residual"}) {
    input(call[name], name);
  }
  output(call["y"], "y");
  return forward_args(call);
}

}  // namespace

PYBIND11_MODULE(IK_HOST_MODULE, module) {
  bind_runtime(module);
  module.def("tiles", [] {
    std::vector<Pair> tiles;
    for (int i = 0; i < cuda::separable_sm90_tiles(); ++i) {
      const cuda::SeparableSm90Tile tile = cuda::separable_sm90_tile(i);
      tiles.emplace_back(tile.columns, tile.channels);
    }
    return tiles;
  });
  module.def("unsupported", [](const py::dict& call) {
    const char* reason = cuda::separable_sm90_unsupported(forward_args(call), context());
    return std::string(reason ? reason : "");
  });
  module.def("choice", [](const py::dict& call) {
    const cuda::SeparableSm90Choice choice = cuda::separable_sm90_choice(forward_args(call), context());
    return Pair(choice.tile, choice.cluster);
  });
  module.def("workspace_bytes", [](const py::dict& call, bool statistics) {
    return cuda::separable_sm90_workspace_bytes(forward_args(call), statistics, context());
  });
  module.def("forward",
             [](const py::dict& call) { cuda::separable_sm90_forward(announced_args(call), nullptr, context()); });
  module.def("forward_tiled", [](const py::dict& call, int tile, int cluster) {
    cuda::separable_sm90_forward_tiled(announced_args(call), tile, cluster, context());
  });
  module.def("forward_statistics",
             [](const py::dict& call, const py::object& mean, const py::object& var, const py::object& workspace) {
               cuda::separable_sm90_forward_statistics(announced_args(call), static_cast<float*>(output(mean, "mean")),
                                                       static_cast<float*>(output(var, "var")),
                                                       scratch(workspace, "workspace"), context());
             });
}

}  // namespace ik::host_cuda
