#include <algorithm>

#include "common/counters.h"
#include "cuda/launch.h"
#include "cuda/update_running_statistics.cuh"

namespace ik::cuda {

void update_running_statistics(const RunningStatistics& args, const Context& context) {
  const RunningArgs kernel_args{static_cast<int>(args.K),
                                static_cast<float*>(args.running_mean),
                                static_cast<float*>(args.running_var),
                                args.batches,
                                static_cast<const float*>(args.mean),
                                static_cast<const float*>(args.var),
                                static_cast<float>(args.momentum),
                                static_cast<float>(args.unbiased)};
  count_kernel("update_running_statistics.forward.cuda_f32");
  const auto blocks = static_cast<unsigned>((std::max<int64_t>(args.K, 1) + kRunningThreads - 1) / kRunningThreads);
  IK_LAUNCH(update_running_statistics_kernel, dim3(blocks), dim3(kRunningThreads), 0, context, kernel_args);
}

}  // namespace ik::cuda
