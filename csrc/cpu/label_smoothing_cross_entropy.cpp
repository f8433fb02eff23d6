#include "label_smoothing_cross_entropy.h"

#include "common/counters.h"
#include "common/parallel.h"
#include "cpu/isa.h"
#include "cpu/label_smoothing_table.h"

namespace ik::cpu {

namespace {

const LabelSmoothingTable& table(DType dtype) { return IK_TABLE_BY_ISA(label_smoothing_table, dtype); }

// Rows that make waking a thread worthwhile. A row is never shared, so no sum depends on the number of threads.
int64_t rows_per_thread(const LabeledRows& rows) {
  constexpr int64_t kLogits = 32768;
  return rows.K >= kLogits ? 1 : kLogits / rows.K;
}

}  // namespace

void label_smoothing_forward(const LabelSmoothingForward& args) {
  const LabelSmoothingTable& kernels = table(args.rows.dtype);
  count_kernel(kernels.forward_counter);
  parallel_for(0, args.rows.N, rows_per_thread(args.rows),
               [&](int64_t begin, int64_t end) { kernels.forward(args, begin, end); });
}

void label_smoothing_backward(const LabelSmoothingBackward& args) {
  const LabelSmoothingTable& kernels = table(args.rows.dtype);
  count_kernel(kernels.backward_counter);
  const LabeledRows& rows = args.rows;
  const double weights = rows.weight ? kernels.sum_of_weights(rows.weight, rows.K) : static_cast<double>(rows.K);
  parallel_for(0, rows.N, rows_per_thread(rows),
               [&](int64_t begin, int64_t end) { kernels.backward(args, weights, begin, end); });
}

}  // namespace ik::cpu
