#include "cuda/conv2d_bn_act_sm90.h"
#include "host_cuda/bind.h"

namespace ik::host_cuda {
namespace {

// geometry: [window, stride, padding, dilation], each a pair.
using Geometry = std::vector<Pair>;

ConvShape shape_of(const py::object& x, const py::object& y, const Geometry& geometry) {
  const int64_t K = y.attr("shape").cast<std::vector<int64_t>>()[1];
  return conv_shape(x, K, geometry.at(0), geometry.at(1), geometry.at(2), geometry.at(3));
}

void* address(const py::object& tensor) {
  return tensor.is_none() ? nullptr : reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
}

Conv2dForward forward_args(const py::object& x, const py::object& packed, const py::object& scale,
                           const py::object& shift, const py::object& residual, const std::string& act,
                           const py::object& y, const Geometry& geometry) {
  Conv2dForward args = {};
  args.shape = shape_of(x, y, geometry);
  args.dtype = dtype_of(x);
  args.x = nhwc_view<NhwcInput>(x, address(x));
  args.packed_weight = address(packed);
  args.scale = address(scale);
  args.shift = address(shift);
  args.residual = nhwc_view<NhwcInput>(residual, address(residual));
  args.activation = activation(act);
  args.y = nhwc_view<NhwcOutput>(y, address(y));
  return args;
}

void announce_tensors(const py::object& x, const py::object& packed, const py::object& scale, const py::object& shift,
                      const py::object& residual, const py::object& y) {
  input(x, "x");
  input(packed, "packed");
  input(scale, "scale");
  input(shift, "shift");
  input(residual, "residual");
  output(y, "y");
}

}  // namespace

PYBIND11_MODULE(IK_HOST_MODULE, module) {
  bind_runtime(module);
  static const py::none none;
  module.def("tiles", [] {
    std::vector<std::tuple<int, int, bool>> tiles;
    for (int i = 0; i < cuda::conv2d_sm90_tiles(); ++i) {
      const cuda::ConvSm90Tile tile = cuda::conv2d_sm90_tile(i);
      tiles.emplace_back(tile.pixels, tile.channels, tile.statistics);
    }
    return tiles;
  });
  module.def("unsupported", [](const py::object& x, const py::object& packed, const py::object& scale,
                               const py::object& shift, const py::object& residual, const std::string& act,
                               const py::object& y, const Geometry& geometry) {
    const char* reason =
        cuda::conv2d_sm90_unsupported(forward_args(x, packed, scale, shift, residual, act, y, geometry), context());
    return std::string(reason ? reason : "");
  });
  module.def("choice", [](const py::object& x, const py::object& y, const Geometry& geometry, bool statistics) {
    const Conv2dForward args = forward_args(x, none, none, none, none, "none", y, geometry);
    return cuda::conv2d_sm90_choice(args, statistics, context());
  });
  module.def("workspace_bytes",
             [](const py::object& x, const py::object& y, const Geometry& geometry, bool statistics) {
               const Conv2dForward args = forward_args(x, none, none, none, none, "none", y, geometry);
               return cuda::conv2d_sm90_workspace_bytes(args, statistics, context());
             });
  // tile: a number, or -1 for the kernel's own choice
  module.def("forward", [](const py::object& x, const py::object& packed, const py::object& scale,
                           const py::object& shift, const py::object& residual, const std::string& act,
                           const py::object& y, const Geometry& geometry, int tile) {
    announce_tensors(x, packed, scale, shift, residual, y);
    const Conv2dForward args = forward_args(x, packed, scale, shift, residual, act, y, geometry);
    if (tile < 0) {
      cuda::conv2d_sm90_forward(args, nullptr, context());
    } else {
      cuda::conv2d_sm90_forward_tiled(args, tile, nullptr, context());
    }
  });
  module.def("forward_statistics",
             [](const py::object& x, const py::object& packed, const py::object& shift, const py::object& y,
                const Geometry& geometry, const py::object& mean, const py::object& var, const py::object& workspace) {
               announce_tensors(x, packed, none, shift, none, y);
               const Conv2dForward args = forward_args(x, packed, none, shift, none, "none", y, geometry);
               cuda::conv2d_sm90_forward_statistics(args, static_cast<float*>(output(mean, "mean")),
                                                    static_cast<float*>(output(var, "var")),
                                                    scratch(workspace, "workspace"), context());
             });
  module.def("forward_partial_statistics",
             [](const py::object& x, const py::object& packed, const py::object& shift, const py::object& y,
                const Geometry& geometry, const py::object& partial, int tile) {
               announce_tensors(x, packed, none, shift, none, y);
               const Conv2dForward args = forward_args(x, packed, none, shift, none, "none", y, geometry);
               cuda::conv2d_sm90_forward_tiled(args, tile, static_cast<float*>(output(partial, "partial")), context());
             });
}

}  // namespace ik::host_cuda
