#include "asymmetric_pair.h"
#include "common/counters.h"
#include "conv2d_bn_act.h"
#include "host_cuda/bind.h"

namespace ik::host_cuda {
namespace {

// A question about a call does not write y.
enum class Purpose { kLaunch, kQuestion };

std::vector<int64_t> sizes_of(const py::object& tensor) { return tensor.attr("shape").cast<std::vector<int64_t>>(); }

// One of the two convolutions: packed, window, stride, padding, channels, scale, shift, activation.
struct Half {
  const void* packed;
  const void* scale;
  const void* shift;
  Activation act;
  int64_t K;
  Pair size, stride, padding;

  Half(const py::dict& given, const std::string& name)
      : packed(input(given["packed"], (name + "_packed").c_str())),
        scale(input(given["scale"], (name + "_scale").c_str())),
        shift(input(given["shift"], (name + "_shift").c_str())),
        act(activation(given["activation"].cast<std::string>())),
        K(given["channels"].cast<int64_t>()),
        size(given["window"].cast<Pair>()),
        stride(given["stride"].cast<Pair>()),
        padding(given["padding"].cast<Pair>()) {}

  ConvShape shape(int64_t N, int64_t C, int64_t H, int64_t W) const {
    return {N, C, H, W, K, size.first, size.second, stride.first, stride.second, padding.first, padding.second, 1, 1};
  }
};

PairForward arguments(Purpose purpose, const py::object& x, const py::dict& first, const py::dict& second,
                      const py::object& y) {
  const Half one(first, "first");
  const Half two(second, "second");
  const std::vector<int64_t> sizes = sizes_of(x);
  const ConvShape shape = one.shape(sizes[0], sizes[1], sizes[2], sizes[3]);
  const Access access = purpose == Purpose::kLaunch ? Access::kOutput : Access::kInput;
  return {shape,
          two.shape(shape.N, shape.K, shape.P(), shape.Q()),
          dtype_of(x),
          nhwc_input(x, "x"),
          one.packed,
          one.scale,
          one.shift,
          one.act,
          two.packed,
          two.scale,
          two.shift,
          two.act,
          nhwc_view<NhwcOutput>(y, announce_tensor(y, "y", access))};
}

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
  module.def("unsupported", [](const py::object& x, const py::dict& first, const py::dict& second,
                               const py::object& y) {
    return text_of(cuda::asymmetric_pair_unsupported(arguments(Purpose::kQuestion, x, first, second, y), context()));
  });
  module.def("split_reason", [](const py::object& x, const py::dict& first, const py::dict& second,
                                const py::object& y) {
    return text_of(cuda::asymmetric_pair_split_reason(arguments(Purpose::kQuestion, x, first, second, y), context()));
  });
  module.def(
      "workspace_bytes", [](const py::object& x, const py::dict& first, const py::dict& second, const py::object& y) {
        return cuda::asymmetric_pair_workspace_bytes(arguments(Purpose::kQuestion, x, first, second, y), context());
      });
  module.def("forward", [](const py::object& x, const py::dict& first, const py::dict& second, const py::object& y,
                           const py::object& workspace) {
    cuda::asymmetric_pair_forward(arguments(Purpose::kLaunch, x, first, second, y), scratch(workspace, "workspace"),
                                  context());
  });
}

}  // namespace ik::host_cuda
