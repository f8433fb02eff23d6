#include "max_pool2d.h"

#include "common/counters.h"
#include "common/parallel.h"
#include "cpu/isa.h"
#include "cpu/max_pool2d_table.h"
#include "cpu/run_pool.h"

namespace ik::cpu {

namespace {

const MaxPoolTable& table(DType dtype) { return IK_TABLE_BY_ISA(max_pool2d_table, dtype); }

}  // namespace

void max_pool2d(const PoolShape& shape, DType dtype, const NhwcInput& x, const NhwcOutput& y) {
  const ProgramTable& kernels = program_table(dtype);
  count_kernel(kernels.max_pool2d_counter);
  run_pool(pool_task(shape, x, y), kernels.max_pool);
}

void max_pool2d_forward(const MaxPoolForward& args) {
  const PoolShape& shape = args.shape;
  const MaxPoolTable& kernels = table(args.dtype);
  count_kernel(kernels.forward_counter);
  parallel_for(0, shape.N * shape.P(), rows_per_thread(shape.Q() * shape.C),
               [&](int64_t begin, int64_t end) { kernels.forward(args, begin, end); });
}

void max_pool2d_backward(const MaxPoolBackward& args) {
  const PoolShape& shape = args.shape;
  const MaxPoolTable& kernels = table(args.dtype);
  count_kernel(kernels.backward_counter);
  parallel_for(0, shape.N * shape.H, rows_per_thread(shape.W * shape.C),
               [&](int64_t begin, int64_t end) { kernels.backward(args, begin, end); });
}

}  // namespace ik::cpu
