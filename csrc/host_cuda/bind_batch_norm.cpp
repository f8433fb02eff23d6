#include "batch_norm.h"
#include "host_cuda/bind.h"

namespace ik::host_cuda {
namespace {

cuda::ParameterView parameter(const py::object& tensor, const char* name) {
  if (tensor.is_none()) return {};
  return {input(tensor, name), dtype_of(tensor), tensor.attr("stride")(0).cast<int64_t>()};
}

float* wanted_vector(const py::object& tensor, const char* name) { return static_cast<float*>(output(tensor, name)); }

cuda::StatisticsTiles tiles(const void* partial, std::vector<int64_t> sizes, std::vector<int64_t> box) {
  return {static_cast<const float*>(partial), sizes[0], sizes[1], sizes[2], sizes[3], box[0], box[1], box[2]};
}

struct Sizes {
  int64_t N, K, P, Q;

  explicit Sizes(const py::object& tensor) {
    const auto sizes = tensor.attr("shape").cast<std::vector<int64_t>>();
    N = sizes[0];
    K = sizes[1];
    P = sizes[2];
    Q = sizes[3];
  }
};

void fold(int64_t K, const py::object& gamma, const py::object& beta, const py::object& mean, const py::object& var,
          const py::object& bias, double eps, const py::dict& wanted) {
  const auto vector = [&](const char* name) {
    return wanted.contains(name) ? wanted_vector(wanted[name], name) : nullptr;
  };
  cuda::fold_batch_norm(
      K,
      {parameter(gamma, "gamma"), parameter(beta, "beta"), parameter(mean, "mean"), parameter(var, "var"),
       parameter(bias, "bias")},
      eps, {vector("scale"), vector("shift"), vector("rstd"), vector("mean"), vector("gamma"), vector("beta")},
      context());
}

void scale_shift_act(const py::object& z, const py::object& scale, const py::object& shift, const py::object& residual,
                     const std::string& act, const py::object& y) {
  const Sizes size(z);
  cuda::scale_shift_act({size.N, size.P, size.Q, size.K, dtype_of(z), nhwc_input(z, "z"), input(scale, "scale"),
                         input(shift, "shift"), nhwc_input(residual, "residual"), activation(act), nhwc_output(y, "y")},
                        context());
}

BnActBackward backward_args(const py::object& grad_y, const py::object& z, const py::object& residual,
                            const py::dict& norm, bool training, const std::string& act, const py::dict& wanted) {
  const Sizes size(grad_y);
  const auto given = [&](const char* name) { return norm.contains(name) ? input(norm[name], name) : nullptr; };
  const auto view = [&](const char* name) {
    return wanted.contains(name) ? nhwc_output(wanted[name], name) : NhwcOutput{};
  };
  const auto vector = [&](const char* name) { return wanted.contains(name) ? output(wanted[name], name) : nullptr; };
  return {size.N,
          size.P,
          size.Q,
          size.K,
          dtype_of(grad_y),
          nhwc_input(grad_y, "grad_y"),
          nhwc_input(z, "z"),
          nhwc_input(residual, "residual"),
          given("mean"),
          given("rstd"),
          given("gamma"),
          given("beta"),
          training,
          activation(act),
          view("grad_z"),
          view("grad_residual"),
          vector("grad_gamma"),
          vector("grad_beta"),
          vector("grad_z_sum")};
}

}  // namespace

PYBIND11_MODULE(IK_HOST_MODULE, module) {
  bind_runtime(module);
  module.def("fold_batch_norm", &fold);
  module.def("combine_statistics_workspace_bytes", [](std::vector<int64_t> sizes, std::vector<int64_t> box) {
    return cuda::combine_statistics_workspace_bytes(tiles(nullptr, sizes, box));
  });
  module.def("combine_statistics", [](const py::object& partial, std::vector<int64_t> sizes, std::vector<int64_t> box,
                                      const py::object& mean, const py::object& var, const py::object& workspace) {
    cuda::combine_statistics(tiles(input(partial, "partial"), sizes, box), wanted_vector(mean, "mean"),
                             wanted_vector(var, "var"), scratch(workspace, "workspace"), context());
  });
  module.def("batch_statistics_workspace_bytes", [](const py::object& z) {
    const Sizes size(z);
    return cuda::batch_statistics_workspace_bytes(size.N, size.P, size.Q, size.K);
  });
  module.def("batch_statistics", [](const py::object& z, const py::object& mean, const py::object& var,
                                    const py::object& workspace) {
    const Sizes size(z);
    cuda::batch_statistics(size.N, size.P, size.Q, size.K, dtype_of(z), nhwc_input(z, "z"), wanted_vector(mean, "mean"),
                           wanted_vector(var, "var"), scratch(workspace, "workspace"), context());
  });
  module.def("scale_shift_act", &scale_shift_act);
  module.def("bn_act_backward_workspace_bytes", [](const py::object& grad_y) {
    const Sizes size(grad_y);
    BnActBackward args{};
    args.N = size.N;
    args.P = size.P;
    args.Q = size.Q;
    args.K = size.K;
    return cuda::bn_act_backward_workspace_bytes(args);
  });
  module.def("bn_act_backward",
             [](const py::object& grad_y, const py::object& z, const py::object& residual, const py::dict& norm,
                bool training, const std::string& act, const py::dict& wanted, const py::object& workspace) {
               cuda::bn_act_backward(backward_args(grad_y, z, residual, norm, training, act, wanted),
                                     scratch(workspace, "workspace"), context());
             });
}

}  // namespace ik::host_cuda
