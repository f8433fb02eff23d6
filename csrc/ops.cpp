// Every operator schema and the module's init; nothing else. Implementations register themselves in <op>.cpp.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/counters.h"
#include "cpu/empty.h"
#include "cpu/isa.h"
#include "cpu/memory.h"

STABLE_TORCH_LIBRARY(inception_kernels, m) {
  m.def(
      "conv2d_bn_act(Tensor x, Tensor weight, Tensor? bn_weight, Tensor? bn_bias, Tensor? running_mean, "
      "Tensor? running_var, Tensor? bias, Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, "
      "str activation, float eps) -> Tensor");
  m.def(
      "conv2d_bn_act_training(Tensor x, Tensor weight, Tensor? bn_weight, Tensor? bn_bias, Tensor? bias, "
      "Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, str activation, float eps) "
      "-> (Tensor y, Tensor z, Tensor mean, Tensor var)");
  m.def(
      "conv2d_bn_act_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? bn_weight, Tensor? bn_bias, Tensor? "
      "mean, "
      "Tensor? var, Tensor? bias, Tensor? residual, Tensor? z, int[2] stride, int[2] padding, int[2] dilation, "
      "str activation, bool training, float eps, bool[6] output_mask, bool float32_weights=False) "
      "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bn_weight, Tensor grad_bn_bias, Tensor grad_bias, "
      "Tensor grad_residual)");
  m.def("conv2d_bn_act_pack(Tensor weight, int[2] stride, int[2] padding, int[2] dilation) -> Tensor");
  m.def(
      "conv2d_bn_act_prepacked(Tensor x, Tensor packed, Tensor? scale, Tensor? shift, Tensor? residual, "
      "int[4] weight_shape, int[2] stride, int[2] padding, int[2] dilation, str activation) -> Tensor");

  m.def(
      "separable_conv2d(Tensor x, Tensor depthwise_weight, Tensor pointwise_weight, Tensor? bn_weight, Tensor? "
      "bn_bias, "
      "Tensor? running_mean, Tensor? running_var, Tensor? depthwise_bias, Tensor? bias, Tensor? residual, "
      "int[2] stride, int[2] padding, int[2] dilation, str input_activation, str mid_activation, str activation, "
      "float eps) -> Tensor");
  m.def(
      "separable_conv2d_training(Tensor x, Tensor depthwise_weight, Tensor pointwise_weight, Tensor? bn_weight, "
      "Tensor? bn_bias, Tensor? depthwise_bias, Tensor? bias, Tensor? residual, int[2] stride, int[2] padding, "
      "int[2] dilation, str input_activation, str mid_activation, str activation, float eps) "
      "-> (Tensor y, Tensor z, Tensor mean, Tensor var)");
  m.def(
      "separable_conv2d_backward(Tensor grad_y, Tensor x, Tensor depthwise_weight, Tensor pointwise_weight, "
      "Tensor? bn_weight, Tensor? bn_bias, Tensor? mean, Tensor? var, Tensor? depthwise_bias, Tensor? bias, "
      "Tensor? residual, Tensor? z, int[2] stride, int[2] padding, int[2] dilation, str input_activation, "
      "str mid_activation, str activation, bool training, float eps, bool[8] output_mask, "
      "bool float32_weights=False) "
      "-> (Tensor grad_x, Tensor grad_depthwise_weight, Tensor grad_pointwise_weight, Tensor grad_bn_weight, "
      "Tensor grad_bn_bias, Tensor grad_depthwise_bias, Tensor grad_bias, Tensor grad_residual)");
  m.def(
      "separable_conv2d_pack(Tensor depthwise_weight, Tensor pointwise_weight, int[2] stride, int[2] padding, "
      "int[2] dilation) -> (Tensor packed_depthwise, Tensor packed_pointwise)");
  m.def(
      "separable_conv2d_prepacked(Tensor x, Tensor packed_depthwise, Tensor packed_pointwise, Tensor? depthwise_bias, "
      "Tensor? scale, Tensor? shift, Tensor? residual, int[4] window, int[2] stride, int[2] padding, int[2] dilation, "
      "str input_activation, str mid_activation, str activation) -> Tensor");

  m.def(
      "asymmetric_pair(Tensor x, Tensor weight1, Tensor? bn_weight1, Tensor? bn_bias1, Tensor? running_mean1, "
      "Tensor? running_var1, Tensor? bias1, Tensor weight2, Tensor? bn_weight2, Tensor? bn_bias2, "
      "Tensor? running_mean2, Tensor? running_var2, Tensor? bias2, int[2] stride1, int[2] stride2, int[2] padding1, "
      "int[2] padding2, str mid_activation, str activation, float eps) -> Tensor");
  m.def(
      "asymmetric_pair_prepacked(Tensor x, Tensor packed1, Tensor? scale1, Tensor? shift1, int[4] weight_shape1, "
      "Tensor packed2, Tensor? scale2, Tensor? shift2, int[4] weight_shape2, int[2] stride1, int[2] stride2, "
      "int[2] padding1, int[2] padding2, str mid_activation, str activation) -> Tensor");

  m.def(
      "pointwise_depthwise_conv2d(Tensor x, Tensor pointwise_weight, Tensor depthwise_weight, Tensor? bn_weight, "
      "Tensor? bn_bias, Tensor? running_mean, Tensor? running_var, int[2] stride, int[2] padding, int[2] dilation, "
      "str mid_activation, str activation, float eps) -> Tensor");

  m.def(
      "label_smoothing_cross_entropy(Tensor logits, Tensor target, Tensor? weight, float smoothing, int ignore_index, "
      "str reduction) -> (Tensor loss, Tensor statistics)");
  m.def(
      "label_smoothing_cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor? weight, "
      "Tensor statistics, float smoothing, int ignore_index, str reduction) -> Tensor grad_logits");

  m.def("avg_pool2d(Tensor x, int[2] kernel, int[2] stride, int[2] padding, bool count_include_pad) -> Tensor");
  m.def("max_pool2d(Tensor x, int[2] kernel, int[2] stride, int[2] padding) -> Tensor");
  m.def("max_pool2d_training(Tensor x, int[2] kernel, int[2] stride, int[2] padding) -> (Tensor y, Tensor taps)");
  m.def(
      "max_pool2d_backward(Tensor grad_y, Tensor taps, int H, int W, int[2] kernel, int[2] stride, int[2] padding) "
      "-> Tensor grad_x");

  m.def(
      "batch_norm(Tensor z, Tensor? bn_weight, Tensor? bn_bias, Tensor mean, Tensor var, Tensor? residual, "
      "str activation, float eps) -> Tensor");
  m.def(
      "update_running_statistics(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!)? batches, Tensor mean, "
      "Tensor var, float momentum, int count) -> ()");

  m.def("run_program(Tensor[] inputs, Tensor program, Tensor constants, int[] output_sizes) -> Tensor[]");
  m.def("time_program(Tensor[] inputs, Tensor program, Tensor constants, int[] output_sizes) -> Tensor");

  m.def("_counted_kernels() -> str");
  m.def("_reset_counted_kernels() -> ()");
  m.def("_cpu_isa() -> str");
  m.def("_best_cpu_isa() -> str");
  m.def("_set_cpu_isa(str name) -> ()");
  m.def("_memory_use() -> (int taken, int kept)");
  m.def("_release_memory() -> ()");
  m.def("_keep_memory(bool enabled) -> bool");
  m.def("_fill_memory(bool enabled) -> ()");
  m.def("_empty_bytes(int size) -> Tensor");

  // Implemented by the CUDA extension.
  m.def("_counted_cuda_kernels() -> str");
  m.def("_reset_counted_cuda_kernels() -> ()");
  m.def("_cuda_declines(str op, str dtype, int[] shapes, int sm) -> str");
  m.def("_cuda_allows_tf32() -> bool");
}

namespace {

std::string cpu_isa() { return ik::cpu::isa_name(ik::cpu::isa()); }
std::string best_cpu_isa() { return ik::cpu::isa_name(ik::cpu::best_isa()); }
void set_cpu_isa(std::string name) { ik::cpu::set_isa(ik::cpu::isa_from_name(name)); }

std::tuple<int64_t, int64_t> memory_use() {
  const ik::cpu::MemoryUse use = ik::cpu::memory_use();
  return {use.taken, use.kept};
}

torch::stable::Tensor empty_bytes(int64_t size) {
  using torch::headeronly::MemoryFormat, torch::headeronly::ScalarType;
  STD_TORCH_CHECK(size >= 0, "size: expected at least 0, got ", size);
  return ik::cpu::empty({size}, ScalarType::Byte, MemoryFormat::Contiguous);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(inception_kernels, CompositeExplicitAutograd, m) {
  m.impl("_counted_kernels", TORCH_BOX(&ik::counted_kernels));
  m.impl("_reset_counted_kernels", TORCH_BOX(&ik::reset_counted_kernels));
  m.impl("_cpu_isa", TORCH_BOX(&cpu_isa));
  m.impl("_best_cpu_isa", TORCH_BOX(&best_cpu_isa));
  m.impl("_set_cpu_isa", TORCH_BOX(&set_cpu_isa));
  m.impl("_memory_use", TORCH_BOX(&memory_use));
  m.impl("_release_memory", TORCH_BOX(&ik::cpu::release_memory));
  m.impl("_keep_memory", TORCH_BOX(&ik::cpu::keep_memory));
  m.impl("_fill_memory", TORCH_BOX(&ik::cpu::fill_memory));
  m.impl("_empty_bytes", TORCH_BOX(&empty_bytes));
}

// Importing the module loads the library, whose static initialisers register the operators.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module{PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
