// label_smoothing_cross_entropy: softmax, log and the mixture of the label with the uniform prior, row by row.
#pragma once
#include <cstdint>

#include "common/types.h"

namespace ik {

// Rows of logits with their labels. A row's loss is (1 - smoothing) w[y] nll[y] + smoothing / K sum_c w[c] nll[c] with
// nll[c] = log(sum_j exp(x[j])) - x[c]; rows whose label is ignore_index have loss and gradient 0 and are not read.
struct LabeledRows {
  int64_t N, K;
  DType dtype;
  const void* logits;     // [N, K], classes adjacent
  int64_t logits_stride;  // elements from row to row
  const int64_t* target;  // [N], each in [0, K) or ignore_index
  const void* weight;     // [K], accumulation type; null = 1
  double smoothing;
  int64_t ignore_index;
};

struct LabelSmoothingForward {
  LabeledRows rows;
  double* loss;      // [N]
  void* statistics;  // [N, 2], accumulation type: the largest logit and 1 / sum(exp(logit - largest))
};

struct LabelSmoothingBackward {
  LabeledRows rows;
  const void* statistics;  // as the forward pass wrote them
  const double* scale;     // [N], gradient of the result with respect to each row's loss
  void* grad_logits;       // [N, K], contiguous
};

namespace cpu {

void label_smoothing_forward(const LabelSmoothingForward& args);
void label_smoothing_backward(const LabelSmoothingBackward& args);

}  // namespace cpu
}  // namespace ik
