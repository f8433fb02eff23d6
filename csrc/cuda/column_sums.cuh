// Sums over the rows of tables [rows][columns] in float64 and in a fixed order: the second stage of the reductions.
#pragma once
#include "cuda/primitives.cuh"

namespace ik::cuda {

constexpr int kColumns = 32;     // of a block, one a lane
constexpr int kColumnRows = 16;  // warps of a block
constexpr int kColumnThreads = kColumns * kColumnRows;

// Adds what the warps of a (kColumns, kColumnRows) block hold; warp 0 has the result.
template <int kTerms>
IK_DEVICE void add_rows(double (&sums)[kTerms]) {
  IK_SHARED(double, shared, [kTerms * kColumnThreads]);
#pragma unroll
  for (int i = 0; i < kTerms; ++i) shared[i * kColumnThreads + threadIdx.y * kColumns + threadIdx.x] = sums[i];
  __syncthreads();
  if (threadIdx.y != 0) return;
#pragma unroll
  for (int i = 0; i < kTerms; ++i) {
    double total = 0.0;
    for (int row = 0; row < kColumnRows; ++row) total += shared[i * kColumnThreads + row * kColumns + threadIdx.x];
    sums[i] = total;
  }
}

}  // namespace ik::cuda
