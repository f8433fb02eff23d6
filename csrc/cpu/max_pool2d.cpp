#include "max_pool2d.h"

#include <algorithm>

#include "common/counters.h"
#include "common/parallel.h"
#include "cpu/isa.h"
#include "cpu/max_pool2d_table.h"

namespace ik::cpu {

namespace {

const MaxPoolTable& table(DType dtype) {
#if defined(__x86_64__)
  const Isa level = isa();
  if (level >= Isa::kAvx512) return avx512::max_pool2d_table(dtype);
  if (level == Isa::kAvx2) return avx2::max_pool2d_table(dtype);
#endif
  return portable::max_pool2d_table(dtype);
}

// Rows that make waking a thread worthwhile.
int64_t rows_per_thread(int64_t elements_per_row) {
  constexpr int64_t kElements = 8192;
  return std::max<int64_t>(1, kElements / elements_per_row);
}

}  // namespace

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
