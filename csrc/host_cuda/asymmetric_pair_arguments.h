// The arguments of asymmetric_pair as the tests give them.
#pragma once
#include "asymmetric_pair.h"
#include "host_cuda/bind.h"

namespace ik::host_cuda {

// A question about a call does not write y.
enum class Purpose { kLaunch, kQuestion };

inline std::vector<int64_t> sizes_of(const py::object& tensor) {
  return tensor.attr("shape").cast<std::vector<int64_t>>();
}

// One of the two convolutions: packed, window, stride, padding, channels, scale, shift, activation.
struct PairHalf {
  const void* packed;
  const void* scale;
  const void* shift;
  Activation act;
  int64_t K;
  Pair size, stride, padding, dilation;

  PairHalf(const py::dict& given, const std::string& name)
      : packed(input(given["packed"], (name + "_packed").c_str())),
        scale(input(given["scale"], (name + "_scale").c_str())),
        shift(input(given["shift"], (name + "_shift").c_str())),
        act(activation(given["activation"].cast<std::string>())),
        K(given["channels"].cast<int64_t>()),
        size(given["window"].cast<Pair>()),
        stride(given["stride"].cast<Pair>()),
        padding(given["padding"].cast<Pair>()),
        dilation(given["dilation"].cast<Pair>()) {}

  ConvShape shape(int64_t N, int64_t C, int64_t H, int64_t W) const {
    return {N,
            C,
            H,
            W,
            K,
            size.first,
            size.second,
            stride.first,
            stride.second,
            padding.first,
            padding.second,
            dilation.first,
            dilation.second};
  }
};

inline PairForward pair_arguments(Purpose purpose, const py::object& x, const py::dict& first, const py::dict& second,
                                  const py::object& y) {
  const PairHalf one(first, "first");
  const PairHalf two(second, "second");
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

}  // namespace ik::host_cuda
