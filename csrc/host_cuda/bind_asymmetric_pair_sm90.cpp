#include "common/counters.h"
#include "cuda/asymmetric_pair_sm90.h"
#include "host_cuda/asymmetric_pair_arguments.h"

PYBIND11_MODULE(IK_HOST_MODULE, module) {
  using namespace ik;
  using namespace ik::host_cuda;
  bind_runtime(module);
  module.def("counted_kernels", &counted_kernels);
  module.def("reset_counted_kernels", &reset_counted_kernels);
  module.def("tiles", [] {
    std::vector<int> channels;
    for (int i = 0; i < cuda::asymmetric_pair_sm90_tiles(); ++i) {
      channels.push_back(cuda::asymmetric_pair_sm90_tile_channels(i));
    }
    return channels;
  });
  module.def(
      "unsupported",
      [](const py::object& x, const py::dict& first, const py::dict& second, const py::object& y) -> std::string {
        const PairForward args = pair_arguments(Purpose::kQuestion, x, first, second, y);
        const char* reason = cuda::asymmetric_pair_sm90_unsupported(args, context());
        return reason ? reason : "";
      });
  module.def("forward",
             [](const py::object& x, const py::dict& first, const py::dict& second, const py::object& y, int tile) {
               const PairForward args = pair_arguments(Purpose::kLaunch, x, first, second, y);
               if (tile < 0) {
                 cuda::asymmetric_pair_sm90_forward(args, context());
               } else {
                 cuda::asymmetric_pair_sm90_forward_tiled(args, tile, context());
               }
             });
}
