// Sums over the rows of a (lanes, rows) block in a fixed order: the first stage of the reductions.
#pragma once
#include "cuda/channel_lanes.cuh"

namespace ik::cuda {

// The block's sums of kTerms values of each lane, handed to store(term, lane, sum) by one thread each. kTerms is a
// power of two; every thread of the block takes part.
template <int kTerms, typename Store>
IK_DEVICE void reduce_rows(const float (&values)[kTerms], const Store& store) {
  IK_SHARED(float, shared, [kTerms * (kChannelThreads + kMostLanes)]);
  const int lanes = blockDim.x;
  const int rows = blockDim.y;
  const int thread = threadIdx.y * lanes + threadIdx.x;
  const int pitch = kChannelThreads + lanes;  // terms of neighbouring lanes lie in different banks
#pragma unroll
  for (int i = 0; i < kTerms; ++i) shared[i * pitch + thread] = values[i];
  __syncthreads();
  const auto sum_rows = [&](int output, int first, int count) {
    const float* from = shared + output / lanes * pitch + first * lanes + output % lanes;
    float sum = 0.0f;
    for (int row = 0; row < count; ++row) sum += from[row * lanes];
    return sum;
  };
  const int outputs = kTerms * lanes;
  if (outputs >= kChannelThreads) {
    for (int output = thread; output < outputs; output += kChannelThreads) {
      store(output / lanes, output % lanes, sum_rows(output, 0, rows));
    }
    __syncthreads();
    return;
  }
  // Several threads share an output: kTerms rows each, as kTerms * lanes * (rows / kTerms) are all threads.
  const float part = sum_rows(thread % outputs, thread / outputs * kTerms, kTerms);
  __syncthreads();
  shared[thread] = part;
  __syncthreads();
  if (thread < outputs) {
    float sum = 0.0f;
    for (int i = thread; i < kChannelThreads; i += outputs) sum += shared[i];
    store(thread / lanes, thread % lanes, sum);
  }
  __syncthreads();
}

}  // namespace ik::cuda
