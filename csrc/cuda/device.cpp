// The operators' device on CUDA: every call goes to the current stream, memory comes from PyTorch's caching allocator,
// and nothing waits.
#include "common/device.h"

#include "cuda/convolution_backward.h"
#include "cuda/runtime.h"

namespace ik {

namespace {

using torch::headeronly::ScalarType;

constexpr int kOldestCapability = 80;

void refuse(const char* reason, const char* op) {
  STD_TORCH_CHECK(reason == nullptr, op, " on ", Device::name(), ": ", reason);
}

cuda::ParameterView parameter(const OptionalTensor& vector, int64_t K, const char* name) {
  if (!vector) return {};
  check_channel_vector(*vector, K, name);
  return {vector->const_data_ptr(), dtype_of(*vector, name), vector->stride(0)};
}

float* floats(const OptionalTensor& vector) {
  return vector ? static_cast<float*>(vector->mutable_data_ptr()) : nullptr;
}

float* floats(void* vector) { return static_cast<float*>(vector); }

}  // namespace

// Memory that one launch uses. Freeing it after the launch is safe: the allocator reuses it in the stream's order.
class Device::Workspace {
 public:
  Workspace(const Device& device, size_t bytes) {
    if (bytes > 0) memory_ = device.vector(static_cast<int64_t>(bytes), ScalarType::Byte);
  }
  void* data() const { return memory_ ? memory_->mutable_data_ptr() : nullptr; }

 private:
  OptionalTensor memory_;
};

Device::Device(const Tensor& x, Work work) : neighbour_(x), made_current_(cuda::make_current(x)) {
  STD_TORCH_CHECK(dtype_of(x, "x") != DType::kFloat64, "float64 runs on the reference backend, not on ", name());
  context_ = cuda::context_of(x, work == kProducts);
  STD_TORCH_CHECK(context_.sm >= kOldestCapability, "the CUDA kernels need compute capability 8.0, this device has ",
                  context_.sm / 10, ".", context_.sm % 10);
}

const char* Device::name() { return cuda::device_name(); }

bool Device::holds(const Tensor& tensor) { return cuda::holds(tensor); }

Tensor Device::empty(const Tensor& neighbour, const std::vector<int64_t>& sizes, ScalarType dtype,
                     torch::headeronly::MemoryFormat format) {
  return cuda::empty(neighbour, sizes, dtype, format);
}

Tensor Device::vector(int64_t size, ScalarType dtype) const {
  return empty(*neighbour_, {size}, dtype, torch::headeronly::MemoryFormat::Contiguous);
}

ScaleShift Device::fold_batch_norm(DType dtype, int64_t K, const OptionalTensor& bn_weight,
                                   const OptionalTensor& bn_bias, const OptionalTensor& mean, const OptionalTensor& var,
                                   const OptionalTensor& bias, double eps) const {
  if (!mean) return {std::nullopt, channel_vector(bias, K, dtype, "bias")};
  const ScaleShift bn{vector(K, ScalarType::Float), vector(K, ScalarType::Float)};
  const cuda::BatchNormParameters given{parameter(bn_weight, K, "bn_weight"), parameter(bn_bias, K, "bn_bias"),
                                        parameter(mean, K, "running_mean"), parameter(var, K, "running_var"),
                                        parameter(bias, K, "bias")};
  cuda::BatchNormVectors wanted{};
  wanted.scale = floats(bn.scale);
  wanted.shift = floats(bn.shift);
  cuda::fold_batch_norm(K, given, eps, wanted, context_);
  return bn;
}

OptionalTensor Device::reciprocal_deviation(DType, int64_t K, const OptionalTensor& var, double eps) const {
  if (!var) return std::nullopt;
  const OptionalTensor rstd = vector(K, ScalarType::Float);
  cuda::BatchNormParameters given{};
  given.mean = parameter(var, K, "var");  // statistics come in pairs; the mean is not asked for
  given.var = given.mean;
  cuda::BatchNormVectors wanted{};
  wanted.rstd = floats(rstd);
  cuda::fold_batch_norm(K, given, eps, wanted, context_);
  return rstd;
}

void Device::scale_shift_act(const ScaleShiftAct& args) const { cuda::scale_shift_act(args, context_); }

void Device::bn_act_backward(const BnActBackward& args) const {
  const Workspace workspace(*this, cuda::bn_act_backward_workspace_bytes(args));
  cuda::bn_act_backward(args, workspace.data(), context_);
}

void Device::update_running_statistics(const RunningStatistics& args) const {
  cuda::update_running_statistics(args, context_);
}

// ---- conv2d_bn_act

size_t Device::conv2d_packed_bytes(const ConvShape& shape, DType dtype) const {
  return cuda::conv2d_packed_bytes(shape, dtype);
}

void Device::conv2d_pack(const ConvShape& shape, DType dtype, const WeightView& weight, void* packed) const {
  cuda::conv2d_pack(shape, dtype, weight, packed, context_);
}

void Device::conv2d_forward(const Conv2dForward& args) const {
  refuse(cuda::conv2d_unsupported(args, context_), "conv2d_bn_act");
  const Workspace workspace(*this, cuda::conv2d_workspace_bytes(args, false, context_));
  cuda::conv2d_forward(args, workspace.data(), context_);
}

void Device::conv2d_forward_statistics(const Conv2dForward& given, const Tensor& weight, void* mean, void* var) const {
  const Workspace packed(*this, cuda::conv2d_packed_bytes(given.shape, given.dtype));
  cuda::conv2d_pack(given.shape, given.dtype, weight_view(weight), packed.data(), context_);
  Conv2dForward args = given;
  args.packed_weight = packed.data();
  refuse(cuda::conv2d_unsupported(args, context_), "conv2d_bn_act");
  const Workspace workspace(*this, cuda::conv2d_workspace_bytes(args, true, context_));
  cuda::conv2d_forward_statistics(args, floats(mean), floats(var), workspace.data(), context_);
}

Conv2dGradients Device::conv2d_backward(const ConvShape& shape, const Tensor& grad_z, const Tensor& x,
                                        const Tensor& weight, bool wants_x, bool wants_weight, bool,
                                        torch::headeronly::ScalarType) const {
  return cuda::convolution_backward(shape, grad_z, x, weight, wants_x, wants_weight);
}

// ---- separable_conv2d

size_t Device::separable_packed_depthwise_bytes(const ConvShape& shape, DType dtype) const {
  return cuda::separable_packed_depthwise_bytes(shape, dtype);
}

size_t Device::separable_packed_pointwise_bytes(const ConvShape& shape, DType dtype) const {
  return cuda::separable_packed_pointwise_bytes(shape, dtype);
}

void Device::separable_pack(const ConvShape& shape, DType dtype, const WeightView& depthwise,
                            const WeightView& pointwise, void* packed_depthwise, void* packed_pointwise) const {
  cuda::separable_pack(shape, dtype, depthwise, pointwise, packed_depthwise, packed_pointwise, context_);
}

void Device::separable_forward(const SeparableForward& args) const {
  refuse(cuda::separable_unsupported(args, context_), "separable_conv2d");
  const Workspace workspace(*this, cuda::separable_workspace_bytes(args, false, context_));
  cuda::separable_forward(args, workspace.data(), context_);
}

void Device::separable_forward_statistics(const SeparableForward& given, const WeightView& depthwise,
                                          const WeightView& pointwise, void* mean, void* var) const {
  const Workspace packed_depthwise(*this, cuda::separable_packed_depthwise_bytes(given.shape, given.dtype));
  const Workspace packed_pointwise(*this, cuda::separable_packed_pointwise_bytes(given.shape, given.dtype));
  cuda::separable_pack(given.shape, given.dtype, depthwise, pointwise, packed_depthwise.data(), packed_pointwise.data(),
                       context_);
  SeparableForward args = given;
  args.packed_depthwise = packed_depthwise.data();
  args.packed_pointwise = packed_pointwise.data();
  refuse(cuda::separable_unsupported(args, context_), "separable_conv2d");
  const Workspace workspace(*this, cuda::separable_workspace_bytes(args, true, context_));
  cuda::separable_forward_statistics(args, floats(mean), floats(var), workspace.data(), context_);
}

void Device::separable_backward(const SeparableBackward& args) const {
  refuse(cuda::separable_backward_unsupported(args, context_), "the gradient of separable_conv2d");
  const Workspace workspace(*this, cuda::separable_backward_workspace_bytes(args, context_));
  cuda::separable_backward(args, workspace.data(), context_);
}

// ---- asymmetric_pair

void Device::asymmetric_pair_forward(const PairForward& args) const {
  refuse(cuda::asymmetric_pair_unsupported(args, context_), "asymmetric_pair");
  const Workspace workspace(*this, cuda::asymmetric_pair_workspace_bytes(args, context_));
  cuda::asymmetric_pair_forward(args, workspace.data(), context_);
}

}  // namespace ik
