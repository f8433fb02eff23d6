// One launch for what a batch norm remembers, where PyTorch's operators would be four.
#pragma once
#include "cuda/primitives.cuh"
#include "update_running_statistics.h"

namespace ik::cuda {

constexpr int kRunningThreads = 128;

struct RunningArgs {
  int K;
  float* running_mean;
  float* running_var;
  int64_t* batches;
  const float* mean;
  const float* var;
  float momentum, unbiased;
};

// torch.lerp's formula, which is exact at both ends.
IK_DEVICE float towards(float value, float end, float weight) {
  return weight < 0.5f ? value + weight * (end - value) : end - (end - value) * (1.0f - weight);
}

__global__ void __launch_bounds__(kRunningThreads) update_running_statistics_kernel(RunningArgs args) {
  const int k = static_cast<int>(blockIdx.x) * kRunningThreads + static_cast<int>(threadIdx.x);
  if (k == 0 && args.batches != nullptr) *args.batches += 1;
  if (k >= args.K) return;
  args.running_mean[k] = towards(args.running_mean[k], args.mean[k], args.momentum);
  args.running_var[k] = towards(args.running_var[k], args.var[k] * args.unbiased, args.momentum);
}

}  // namespace ik::cuda
