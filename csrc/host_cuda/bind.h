// What a bind_<op>.cpp needs to expose launchers to the tests: torch tensors become pointers and views, and are
// announced to the checker on the way. Activations are [N, C, H, W] tensors whose channel stride is 1.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "common/types.h"
#include "cuda/context.h"
#include "host_cuda/session.h"

namespace ik::host_cuda {

namespace py = pybind11;

inline cuda::Context& context() {
  static cuda::Context current = {nullptr, 80, 2, false};
  return current;
}

inline DType dtype_of(const py::object& tensor) {
  const std::string name = py::str(tensor.attr("dtype"));
  if (name == "torch.float32") return DType::kFloat32;
  if (name == "torch.float64") return DType::kFloat64;
  if (name == "torch.bfloat16") return DType::kBFloat16;
  if (name == "torch.float16") return DType::kFloat16;
  throw std::invalid_argument("expected a floating tensor, got " + name);
}

inline Activation activation(const std::string& name) {
  const char* names[] = {"none", "relu", "relu6", "elu", "silu"};
  for (int code = 0; code < 5; ++code) {
    if (name == names[code]) return static_cast<Activation>(code);
  }
  throw std::invalid_argument("unknown activation " + name);
}

inline void* announce_tensor(const py::object& tensor, const char* name, Access access) {
  if (tensor.is_none()) return nullptr;
  void* data = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
  announce({name, access, data, tensor.attr("element_size")().cast<int64_t>(),
            tensor.attr("shape").cast<std::vector<int64_t>>(), tensor.attr("stride")().cast<std::vector<int64_t>>()});
  return data;
}
inline const void* input(const py::object& tensor, const char* name) {
  return announce_tensor(tensor, name, Access::kInput);
}
inline void* output(const py::object& tensor, const char* name) {
  return announce_tensor(tensor, name, Access::kOutput);
}
inline void* updated(const py::object& tensor, const char* name) {
  return announce_tensor(tensor, name, Access::kUpdated);
}
inline void* scratch(const py::object& tensor, const char* name) {
  return announce_tensor(tensor, name, Access::kScratch);
}

template <typename View>
View nhwc_view(const py::object& tensor, decltype(View::data) data) {
  View view;
  if (tensor.is_none()) return view;
  const auto strides = tensor.attr("stride")().cast<std::vector<int64_t>>();
  const auto sizes = tensor.attr("shape").cast<std::vector<int64_t>>();
  if (strides.size() != 4 || (strides[1] != 1 && sizes[1] > 1)) {
    throw std::invalid_argument("expected [N, C, H, W] with adjacent channels");
  }
  view.data = data;
  view.stride_n = strides[0];
  view.stride_h = strides[2];
  view.stride_w = strides[3];
  return view;
}
inline NhwcInput nhwc_input(const py::object& tensor, const char* name) {
  return nhwc_view<NhwcInput>(tensor, input(tensor, name));
}
inline NhwcOutput nhwc_output(const py::object& tensor, const char* name) {
  return nhwc_view<NhwcOutput>(tensor, output(tensor, name));
}

// [K, C, R, S], any strides.
inline WeightView weight_view(const py::object& tensor, const char* name) {
  const auto strides = tensor.attr("stride")().cast<std::vector<int64_t>>();
  return {input(tensor, name), strides[0], strides[1], strides[2], strides[3]};
}

using Pair = std::pair<int64_t, int64_t>;
inline ConvShape conv_shape(const py::object& x, int64_t K, Pair window, Pair stride, Pair padding, Pair dilation) {
  const auto sizes = x.attr("shape").cast<std::vector<int64_t>>();
  return {sizes[0],       sizes[1],       sizes[2],       sizes[3],      K,
          window.first,   window.second,  stride.first,   stride.second, padding.first,
          padding.second, dilation.first, dilation.second};
}

// Every module has these; tests/host_cuda.py calls them around each launcher.
inline void bind_runtime(py::module_& module) {
  module.def("begin",
             [](int order, bool lazy, bool checked, bool executes) { begin({order, lazy}, checked, executes); });
  module.def("launched", [] {
    std::vector<std::tuple<std::string, int, int64_t, int64_t>> found;
    for (const Launched& each : launched) {
      found.push_back({each.kernel, each.threads, each.shared, each.shared_limit});
    }
    return found;
  });
  module.def("end", &end);
  module.def("set_context", [](int sm, int multiprocessors, bool allow_tf32) {
    context() = {nullptr, sm, multiprocessors, allow_tf32};
  });
}

}  // namespace ik::host_cuda
