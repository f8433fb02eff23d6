#if defined(__x86_64__)
// Only the product of bf16 weight gradients gains from tiles; everything else is what AVX-512 has.
#define IK_TRAINING_TILES
#include <math.h>
#include <stdint.h>

#include "cpu/amx/tiles.h"
#include "cpu/storage.h"
#include "cpu/training/kernels.h"

namespace ik::cpu::training {
namespace amx {
namespace {

// clang-format off: each part uses the ones before it
#include "../training/vector.inl"
#include "../training/activation.inl"
#include "../training/norm.inl"
#include "../training/product.inl"
#include "../training/strip.inl"
#include "../training/weight.inl"
#include "../training/weight_tiles.inl"
// clang-format on

Kernels make_kernels() {
  Kernels kernels = kernels_avx512(DType::kBFloat16);
  kernels.conv_name = "conv2d_bn_act.backward.cpu_amx_bf16";
  kernels.separable_name = "separable_conv2d.backward.cpu_amx_bf16";
  kernels.rows = kRows;
  kernels.sums_in_place = false;  // whole tiles are stored
  kernels.weight = {&weight_gradient_tiles, &weight_finish<Bf16>, &weight_finish<float>};
  kernels.winograd_count = 0;  // products of float32 gain nothing over tiles
  return kernels;
}

}  // namespace
}  // namespace amx

const Kernels& kernels_amx(DType dtype) {
  static const Kernels kBFloat16Kernels = amx::make_kernels();
  return dtype == DType::kBFloat16 ? kBFloat16Kernels : kernels_avx512(dtype);
}

}  // namespace ik::cpu::training
#endif
