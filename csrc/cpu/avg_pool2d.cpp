#include "avg_pool2d.h"

#include "common/counters.h"
#include "cpu/run_pool.h"

namespace ik::cpu {

void avg_pool2d(const PoolShape& shape, DType dtype, const NhwcInput& x, const NhwcOutput& y, bool count_include_pad) {
  const ProgramTable& kernels = program_table(dtype);
  count_kernel(kernels.avg_pool2d_counter);
  PoolTask task = pool_task(shape, x, y);
  task.count_include_pad = count_include_pad;
  run_pool(task, kernels.average_pool);
}

}  // namespace ik::cpu
