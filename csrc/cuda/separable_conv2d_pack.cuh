// The depthwise weight [C, 1, R, S] of any strides into [R * S][C rounded up to 8], zero filled.
#pragma once
#include "common/types.h"
#include "cuda/primitives.cuh"

namespace ik::cuda::separable {

constexpr int kPackThreads = 256;

// Bits is an unsigned integer of the element's size.
template <typename Bits>
__global__ void __launch_bounds__(kPackThreads)
    pack_depthwise_kernel(WeightView weight, int C, int S, int padded_channels, int64_t count, Bits* packed) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  if (index >= count) return;
  const int tap = static_cast<int>(index / padded_channels);
  const int c = static_cast<int>(index - static_cast<int64_t>(tap) * padded_channels);
  const int r = tap / S;
  const int s = tap - r * S;
  const Bits* data = static_cast<const Bits*>(weight.data);
  packed[index] = c < C ? data[c * weight.stride_k + r * weight.stride_r + s * weight.stride_s] : Bits(0);
}

}  // namespace ik::cuda::separable
