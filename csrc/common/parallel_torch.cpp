#include <torch/csrc/stable/ops.h>

#include "common/parallel.h"

namespace ik {

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

void parallel_for(int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (begin < end) torch::stable::parallel_for(begin, end, grain, body);
}

}  // namespace ik
