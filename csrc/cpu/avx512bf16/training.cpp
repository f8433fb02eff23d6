#if defined(__x86_64__)
// Only the product of bf16 weight gradients gains from pairs; everything else is what AVX-512 has.
#include <math.h>
#include <stdint.h>

#include "cpu/intrinsics.h"
#include "cpu/storage.h"
#include "cpu/training/kernels.h"

namespace ik::cpu::training {
namespace avx512bf16 {
namespace {

// clang-format off: each part uses the ones before it
#include "../training/vector.inl"
#include "../training/activation.inl"
#include "../training/norm.inl"
#include "../training/product.inl"
#include "../training/strip.inl"
#include "../training/weight.inl"
#include "../training/weight_pairs.inl"
// clang-format on

Kernels make_kernels() {
  Kernels kernels = kernels_avx512(DType::kBFloat16);
  kernels.conv_name = "conv2d_bn_act.backward.cpu_avx512bf16_bf16";
  kernels.winograd_data_name = "conv2d_bn_act.backward.cpu_avx512bf16_bf16_winograd_data";
  kernels.separable_name = "separable_conv2d.backward.cpu_avx512bf16_bf16";
  kernels.weight.gradient = &weight_gradient<Bf16, PairProduct>;
  return kernels;
}

}  // namespace
}  // namespace avx512bf16

const Kernels& kernels_avx512bf16(DType dtype) {
  static const Kernels kBFloat16Kernels = avx512bf16::make_kernels();
  return dtype == DType::kBFloat16 ? kBFloat16Kernels : kernels_avx512(dtype);
}

}  // namespace ik::cpu::training
#endif
