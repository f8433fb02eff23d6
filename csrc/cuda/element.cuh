// The storage types of activations and their conversion from and to float. Pairs in a register: primitives.cuh.
#pragma once
#include "cuda/primitives.cuh"

namespace ik::cuda {

IK_DEVICE float to_float(float value) { return value; }
IK_DEVICE float to_float(bf16 value) { return __bfloat162float(value); }
IK_DEVICE float to_float(fp16 value) { return __half2float(value); }

template <typename T>
struct Element;

template <>
struct Element<float> {
  static IK_DEVICE float from_float(float value) { return value; }
};

template <>
struct Element<bf16> {
  static IK_DEVICE bf16 from_float(float value) { return __float2bfloat16_rn(value); }
};

template <>
struct Element<fp16> {
  static IK_DEVICE fp16 from_float(float value) { return __float2half_rn(value); }
};

// The value as it will be read back after a store.
template <typename T>
IK_DEVICE float rounded(float value) {
  return to_float(Element<T>::from_float(value));
}

}  // namespace ik::cuda
