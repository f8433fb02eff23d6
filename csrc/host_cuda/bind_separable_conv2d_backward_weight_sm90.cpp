#include "common/counters.h"
#include "cuda/separable_conv2d_backward_weight_sm90.h"
#include "host_cuda/bind.h"

namespace ik::host_cuda {
namespace {

// grad_z [N, K, P, Q] and the pixels of the depthwise output [pixels, C] with their pitch.
cuda::PointwiseWeightGradient arguments(const py::object& grad_z, const py::object& pixels, const void* grad_data,
                                        const void* pixel_data) {
  const auto sizes = grad_z.attr("shape").cast<std::vector<int64_t>>();
  return {sizes[0],
          sizes[2],
          sizes[3],
          sizes[1],
          pixels.attr("shape").cast<std::vector<int64_t>>()[1],
          dtype_of(grad_z),
          nhwc_view<NhwcInput>(grad_z, grad_data),
          pixel_data,
          pixels.attr("stride")().cast<std::vector<int64_t>>()[0],
          nullptr};
}

cuda::PointwiseWeightGradient question(const py::object& grad_z, const py::object& pixels) {
  const auto address = [](const py::object& tensor) {
    return reinterpret_cast<const void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
  };
  return arguments(grad_z, pixels, address(grad_z), address(pixels));
}

cuda::PointwiseWeightSm90Plan plan_of(int tile, const cuda::PointwiseWeightGradient& args) {
  return tile < 0 ? cuda::pointwise_weight_sm90_plan(args, context())
                  : cuda::pointwise_weight_sm90_plan_of(tile, args, context());
}

}  // namespace

PYBIND11_MODULE(IK_HOST_MODULE, module) {
  bind_runtime(module);
  module.def("counted_kernels", &counted_kernels);
  module.def("reset_counted_kernels", &reset_counted_kernels);
  module.def("tiles", &cuda::pointwise_weight_sm90_tiles);
  module.def("unsupported", [](const py::object& grad_z, const py::object& pixels) -> std::string {
    const char* reason = cuda::pointwise_weight_sm90_unsupported(question(grad_z, pixels), context());
    return reason ? reason : "";
  });
  // tile: a number, or -1 for the kernel's own choice. Gives the tile, and the pixels of a part.
  module.def("plan", [](const py::object& grad_z, const py::object& pixels, int tile) {
    const cuda::PointwiseWeightSm90Plan plan = plan_of(tile, question(grad_z, pixels));
    return std::tuple(plan.tile, plan.split_pixels, plan.splits);
  });
  module.def("sums", [](const py::object& grad_z, const py::object& pixels, const py::object& partial, int tile) {
    const cuda::PointwiseWeightGradient args =
        arguments(grad_z, pixels, input(grad_z, "grad_z"), input(pixels, "pixels"));
    cuda::pointwise_weight_sm90(args, plan_of(tile, args), static_cast<float*>(output(partial, "partial")), context());
  });
}

}  // namespace ik::host_cuda
