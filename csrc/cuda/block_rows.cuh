// Sums over the rows of a (lanes, rows) block in a fixed order: the first stage of the reductions.
#pragma once
#include "cuda/channel_lanes.cuh"

namespace ik::cuda {

// Adds what the rows of the block hold, pairwise; row 0 has the result.
template <int kTerms>
IK_DEVICE void add_block_rows(float (&sums)[kTerms]) {
  IK_SHARED(float, shared, [kChannelThreads / 2 * kTerms]);
  constexpr int kPitch = kChannelThreads / 2;
  const int row = threadIdx.y;
  for (int rows = blockDim.y / 2; rows >= 1; rows /= 2) {
    const int place = (row % rows) * blockDim.x + threadIdx.x;
    if (row >= rows && row < 2 * rows) {
#pragma unroll
      for (int i = 0; i < kTerms; ++i) shared[i * kPitch + place] = sums[i];
    }
    __syncthreads();
    if (row < rows) {
#pragma unroll
      for (int i = 0; i < kTerms; ++i) sums[i] += shared[i * kPitch + place];
    }
    __syncthreads();
  }
}

// The block's sum of kCount channels, stored by the thread that has it.
template <int kCount>
IK_DEVICE void add_and_store(float (&sums)[kCount], bool writes, float* to) {
  add_block_rows(sums);
  if (!writes) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = sums[i];
}

}  // namespace ik::cuda
