// What an operator's body asks of the device that its tensors are on. csrc/cpu/device.cpp and csrc/cuda/device.cpp
// define the same members, and each extension links one of them: the body in csrc/<op>.cpp exists once.
#pragma once
#include <cstddef>
#include <memory>

#include "asymmetric_pair.h"
#include "batch_norm.h"
#include "common/tensors.h"
#include "conv2d_bn_act.h"
#include "cuda/context.h"
#include "separable_conv2d.h"
#include "update_running_statistics.h"

namespace ik {

// [K] in the accumulation type on the operator's device; missing = 1 and 0.
struct ScaleShift {
  OptionalTensor scale, shift;
};

// [N, C, H, W] channels-last and [K, C, R, S] in the weight's memory format; undefined where not wanted.
struct Conv2dGradients {
  OptionalTensor x, weight;
};

class Device {
 public:
  // What a call computes with: products, whose precision PyTorch's flags decide, or vectors alone.
  enum Work { kProducts, kVectors };

  // Makes the device of x current until destruction. Throws where no kernel of this extension runs on x.
  explicit Device(const Tensor& x, Work work = kProducts);

  static const char* name();
  static bool holds(const Tensor& tensor);
  // Uninitialised, on the neighbour's device.
  static Tensor empty(const Tensor& neighbour, const std::vector<int64_t>& sizes, torch::headeronly::ScalarType dtype,
                      torch::headeronly::MemoryFormat format);

  // y = scale * conv + shift for BN with these statistics over conv + bias; without statistics just the bias.
  ScaleShift fold_batch_norm(DType dtype, int64_t K, const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                             const OptionalTensor& mean, const OptionalTensor& var, const OptionalTensor& bias,
                             double eps) const;
  // [K] 1 / sqrt(var + eps) in the accumulation type.
  OptionalTensor reciprocal_deviation(DType dtype, int64_t K, const OptionalTensor& var, double eps) const;
  void scale_shift_act(const ScaleShiftAct& args) const;
  void bn_act_backward(const BnActBackward& args) const;
  void update_running_statistics(const RunningStatistics& args) const;

  size_t conv2d_packed_bytes(const ConvShape& shape, DType dtype) const;
  void conv2d_pack(const ConvShape& shape, DType dtype, const WeightView& weight, void* packed) const;
  void conv2d_forward(const Conv2dForward& args) const;
  // With a weight that is not packed (args.packed_weight is not read); also the mean and the biased variance [K] of y
  // over N, P, Q.
  void conv2d_forward_statistics(const Conv2dForward& args, const Tensor& weight, void* mean, void* var) const;
  // Of a batch that is not empty; grad_z is channels-last. The weight's gradient is of weight_type.
  Conv2dGradients conv2d_backward(const ConvShape& shape, const Tensor& grad_z, const Tensor& x, const Tensor& weight,
                                  bool wants_x, bool wants_weight, bool batch_statistics,
                                  torch::headeronly::ScalarType weight_type) const;

  size_t separable_packed_depthwise_bytes(const ConvShape& shape, DType dtype) const;
  size_t separable_packed_pointwise_bytes(const ConvShape& shape, DType dtype) const;
  void separable_pack(const ConvShape& shape, DType dtype, const WeightView& depthwise, const WeightView& pointwise,
                      void* packed_depthwise, void* packed_pointwise) const;
  void separable_forward(const SeparableForward& args) const;
  // With weights that are not packed (those of args are not read); also the statistics of y as above.
  void separable_forward_statistics(const SeparableForward& args, const WeightView& depthwise,
                                    const WeightView& pointwise, void* mean, void* var) const;
  void separable_backward(const SeparableBackward& args) const;

  void asymmetric_pair_forward(const PairForward& args) const;

 private:
  class Workspace;

  Tensor vector(int64_t size, torch::headeronly::ScalarType dtype) const;

  // The CPU's has neither of them, nor vector().
  OptionalTensor neighbour_;
  std::shared_ptr<void> made_current_;  // restores the previous device
  cuda::Context context_{};
};

}  // namespace ik
