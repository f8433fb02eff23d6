#include "cuda/convolution_backward.h"

#include <array>

#include "common/counters.h"
#include "common/empty.h"

namespace ik::cuda {

namespace {

using torch::headeronly::MemoryFormat;
using torch::stable::detail::from;
using torch::stable::detail::to;

// The tensor itself where its strides are those of the format already, as cuDNN's are for channels-last operands.
Tensor in_format(const Tensor& tensor, MemoryFormat format) {
  const std::vector<int64_t> strides =
      strides_of({tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3)}, format);
  for (int64_t d = 0; d < 4; ++d)
    if (tensor.stride(d) != strides[d]) return torch::stable::contiguous(tensor, format);
  return tensor;
}

}  // namespace

Conv2dGradients convolution_backward(const ConvShape& shape, const Tensor& grad_z, const Tensor& x,
                                     const Tensor& weight, bool wants_x, bool wants_weight) {
  count_kernel("conv2d_bn_act.backward.cuda_aten");
  const std::vector<int64_t> stride{shape.stride_h, shape.stride_w}, padding{shape.pad_h, shape.pad_w},
      dilation{shape.dilation_h, shape.dilation_w}, output_padding{0, 0};
  const std::array<bool, 3> wanted{wants_x, wants_weight, false};
  std::array<StableIValue, 11> stack{from(grad_z),
                                     from(x),
                                     from(weight),
                                     from(std::nullopt),
                                     from(stride),
                                     from(padding),
                                     from(dilation),
                                     from(false),
                                     from(output_padding),
                                     from(int64_t{1}),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted.data(), wanted.size()))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  // Undefined where not wanted; taken all the same, because the stack owns them.
  const Tensor grad_x = to<Tensor>(stack[0]), grad_weight = to<Tensor>(stack[1]), grad_bias = to<Tensor>(stack[2]);
  Conv2dGradients gradients;
  if (wants_x) gradients.x = in_format(grad_x, MemoryFormat::ChannelsLast);
  if (wants_weight) {
    gradients.weight =
        in_format(grad_weight, suggests_channels_last(weight) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  }
  return gradients;
}

}  // namespace ik::cuda
