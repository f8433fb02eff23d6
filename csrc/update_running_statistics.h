// What a batch norm remembers of the batches that it has seen, as torch.nn.BatchNorm2d does.
#pragma once
#include "common/types.h"
#include "cuda/context.h"

namespace ik {

struct RunningStatistics {
  int64_t K;
  DType dtype;  // of all vectors: float32, or float64 on the CPU
  void* running_mean;
  void* running_var;
  int64_t* batches;  // one more; null = not counted
  const void* mean;  // of the batch
  const void* var;   // of the batch, biased
  double momentum;
  double unbiased;  // what makes var unbiased: count / (count - 1)
};

namespace cpu {

void update_running_statistics(const RunningStatistics& args);

}  // namespace cpu

// All pointers are device memory.
namespace cuda {

void update_running_statistics(const RunningStatistics& args, const Context& context);

}  // namespace cuda
}  // namespace ik
