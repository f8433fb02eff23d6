// Included once by each instruction set's training.cpp, which defines IK_TRAINING_NAMESPACE, IK_TRAINING_NAME (a
// string) and IK_TRAINING_KERNELS (the function to define).
#include <math.h>
#include <stdint.h>

#include "../cook_toom.h"
#include "../intrinsics.h"
#include "../storage.h"
#include "kernels.h"

namespace ik::cpu::training {
namespace IK_TRAINING_NAMESPACE {
namespace {

// clang-format off: each part uses the ones before it
#include "vector.inl"
#include "activation.inl"
#include "norm.inl"
#include "product.inl"
#include "strip.inl"
#include "weight.inl"
#include "weight_winograd.inl"
#include "separable.inl"
// clang-format on

template <typename T>
constexpr Kernels table(const char* norm_forward, const char* norm_backward, const char* conv, const char* winograd,
                        const char* winograd_data, const char* separable) {
  using A = Accum<T>;
  const WinogradGradient* winograd_gradients = nullptr;  // float64 asks for accuracy
  int64_t winograd_count = 0;
  if constexpr (sizeof(A) == sizeof(float)) {
    winograd_gradients = WinogradGradients<T>::kAll;
    winograd_count = sizeof(WinogradGradients<T>::kAll) / sizeof(WinogradGradient);
  }
  return Kernels{norm_forward,
                 norm_backward,
                 conv,
                 winograd,
                 winograd_data,
                 separable,
                 sizeof(T),
                 sizeof(A),
                 kRows,
                 kColumns<A>,
                 true,
                 &statistics<T>,
                 &scale_shift_act<T>,
                 &norm_reduce<T>,
                 &norm_apply<T>,
                 &pack_depthwise<T>,
                 {&weight_gradient<T, PixelProduct>, &weight_finish<T>, &weight_finish<A>},
                 winograd_gradients,
                 winograd_count,
                 &separable_data<T>,
                 &store_doubles<T>,
                 &store_doubles<A>};
}

#define IK_TRAINING_TABLE(T, dtype)                                                   \
  table<T>("batch_norm.forward.cpu_" IK_TRAINING_NAME "_" dtype,                      \
           "batch_norm.backward.cpu_" IK_TRAINING_NAME "_" dtype,                     \
           "conv2d_bn_act.backward.cpu_" IK_TRAINING_NAME "_" dtype,                  \
           "conv2d_bn_act.backward.cpu_" IK_TRAINING_NAME "_" dtype "_winograd",      \
           "conv2d_bn_act.backward.cpu_" IK_TRAINING_NAME "_" dtype "_winograd_data", \
           "separable_conv2d.backward.cpu_" IK_TRAINING_NAME "_" dtype)

constexpr Kernels kFloat32Kernels = IK_TRAINING_TABLE(float, "f32");
constexpr Kernels kFloat64Kernels = IK_TRAINING_TABLE(double, "f64");
constexpr Kernels kBFloat16Kernels = IK_TRAINING_TABLE(Bf16, "bf16");
constexpr Kernels kFloat16Kernels = IK_TRAINING_TABLE(F16, "f16");

}  // namespace
}  // namespace IK_TRAINING_NAMESPACE

const Kernels& IK_TRAINING_KERNELS(DType dtype) {
  using namespace IK_TRAINING_NAMESPACE;
  switch (dtype) {
    case DType::kFloat64:
      return kFloat64Kernels;
    case DType::kBFloat16:
      return kBFloat16Kernels;
    case DType::kFloat16:
      return kFloat16Kernels;
    case DType::kFloat32:
      break;
  }
  return kFloat32Kernels;
}

}  // namespace ik::cpu::training
