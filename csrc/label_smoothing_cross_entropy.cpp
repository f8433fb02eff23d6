#include "label_smoothing_cross_entropy.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/counters.h"

namespace ik {

namespace {

using torch::headeronly::ScalarType;

enum class Reduction { kMean, kSum, kNone };

Reduction reduction_code(const std::string& name) {
  if (name == "mean") return Reduction::kMean;
  if (name == "sum") return Reduction::kSum;
  STD_TORCH_CHECK(name == "none", "reduction: expected mean, sum or none, got '", name, "'");
  return Reduction::kNone;
}

// Rows with adjacent classes; other layouts are copied.
Tensor with_adjacent_classes(const Tensor& logits) {
  STD_TORCH_CHECK(logits.is_cpu() && logits.dim() == 2 && logits.size(1) > 0,
                  "logits: expected a CPU tensor [N, K] with K >= 1, got ", describe(logits));
  if (logits.size(1) == 1 || logits.stride(1) == 1) return logits;
  count_kernel("layout.to_adjacent_classes");
  return torch::stable::contiguous(logits);
}

Tensor checked_target(const Tensor& target, const Tensor& logits) {
  STD_TORCH_CHECK(target.is_cpu() && target.dim() == 1 && target.scalar_type() == ScalarType::Long &&
                      target.size(0) == logits.size(0),
                  "target: expected int64 [", logits.size(0), "] on the CPU, got ", describe(target));
  return torch::stable::contiguous(target);
}

// std::out_of_range arrives in Python as IndexError, which PyTorch raises as well.
void check_labels(const LabeledRows& rows) {
  for (int64_t i = 0; i < rows.N; ++i) {
    const int64_t label = rows.target[i];
    if (label == rows.ignore_index || (label >= 0 && label < rows.K)) continue;
    throw std::out_of_range("target: expected class indices from 0 to " + std::to_string(rows.K - 1) +
                            " or ignore_index " + std::to_string(rows.ignore_index) + ", got " + std::to_string(label) +
                            " at position " + std::to_string(i));
  }
}

LabeledRows labeled_rows(const Tensor& logits, const Tensor& target, const OptionalTensor& weight, double smoothing,
                         int64_t ignore_index) {
  STD_TORCH_CHECK(smoothing >= 0 && smoothing <= 1, "smoothing: expected a number from 0 to 1, got ", smoothing);
  const DType dtype = dtype_of(logits, "logits");
  check_accumulation_vector(weight, logits, logits.size(1), "weight");
  const LabeledRows rows{logits.size(0),
                         logits.size(1),
                         dtype,
                         logits.const_data_ptr(),
                         logits.stride(0),
                         static_cast<const int64_t*>(target.const_data_ptr()),
                         weight ? weight->const_data_ptr() : nullptr,
                         smoothing,
                         ignore_index};
  check_labels(rows);
  return rows;
}

double value_at(const void* data, int64_t index, bool is_double) {
  return is_double ? static_cast<const double*>(data)[index]
                   : static_cast<double>(static_cast<const float*>(data)[index]);
}

Tensor filled(std::vector<int64_t> sizes, const double* values, int64_t count, DType dtype) {
  Tensor tensor = empty_cpu(std::move(sizes), accumulation_type(dtype));
  if (dtype == DType::kFloat64) {
    std::copy_n(values, count, static_cast<double*>(tensor.mutable_data_ptr()));
  } else {
    std::transform(values, values + count, static_cast<float*>(tensor.mutable_data_ptr()),
                   [](double value) { return static_cast<float>(value); });
  }
  return tensor;
}

// What the mean divides by: the weight of the labels that count.
double label_weights(const LabeledRows& rows) {
  double sum = 0;
  for (int64_t i = 0; i < rows.N; ++i) {
    const int64_t label = rows.target[i];
    if (label != rows.ignore_index) {
      sum += rows.weight ? value_at(rows.weight, label, rows.dtype == DType::kFloat64) : 1.0;
    }
  }
  return sum;
}

}  // namespace

// The loss ([] or, for "none", [N]) and what the backward pass needs of each row's softmax [N, 2], in the accumulation
// type.
std::tuple<Tensor, Tensor> label_smoothing_cross_entropy(const Tensor& logits, const Tensor& target,
                                                         const OptionalTensor& weight, double smoothing,
                                                         int64_t ignore_index, std::string reduction) {
  const Reduction code = reduction_code(reduction);
  const Tensor input = with_adjacent_classes(logits), labels = checked_target(target, logits);
  const LabeledRows rows = labeled_rows(input, labels, weight, smoothing, ignore_index);
  Tensor statistics = empty_cpu({rows.N, 2}, accumulation_type(rows.dtype));
  std::vector<double> loss(rows.N);
  if (rows.N > 0) cpu::label_smoothing_forward({rows, loss.data(), statistics.mutable_data_ptr()});
  if (code == Reduction::kNone) return {filled({rows.N}, loss.data(), rows.N, rows.dtype), statistics};
  double sum = 0;
  for (const double value : loss) sum += value;
  if (code == Reduction::kMean) sum /= label_weights(rows);
  return {filled({}, &sum, 1, rows.dtype), statistics};
}

// grad_loss has the shape and dtype of the loss; the gradient of the logits is contiguous.
Tensor label_smoothing_cross_entropy_backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& target,
                                              const OptionalTensor& weight, const Tensor& statistics, double smoothing,
                                              int64_t ignore_index, std::string reduction) {
  const Reduction code = reduction_code(reduction);
  const Tensor input = with_adjacent_classes(logits), labels = checked_target(target, logits);
  const LabeledRows rows = labeled_rows(input, labels, weight, smoothing, ignore_index);
  const ScalarType accumulation = accumulation_type(rows.dtype);
  STD_TORCH_CHECK(statistics.is_cpu() && statistics.scalar_type() == accumulation && statistics.dim() == 2 &&
                      statistics.size(0) == rows.N && statistics.size(1) == 2 && statistics.is_contiguous(),
                  "statistics: expected those of the forward pass, got ", describe(statistics));
  const bool per_row = code == Reduction::kNone;
  STD_TORCH_CHECK(grad_loss.is_cpu() && grad_loss.scalar_type() == accumulation &&
                      grad_loss.dim() == (per_row ? 1 : 0) && (!per_row || grad_loss.size(0) == rows.N),
                  "grad_loss: expected the shape and dtype of the loss, got ", describe(grad_loss));

  const double divisor = code == Reduction::kMean ? label_weights(rows) : 1.0;
  std::vector<double> scale(rows.N);
  for (int64_t i = 0; i < rows.N; ++i) {
    const int64_t at = per_row ? i * grad_loss.stride(0) : 0;
    scale[i] = value_at(grad_loss.const_data_ptr(), at, rows.dtype == DType::kFloat64) / divisor;
  }
  Tensor grad_logits = empty_cpu({rows.N, rows.K}, logits.scalar_type());
  if (rows.N > 0) {
    cpu::label_smoothing_backward({rows, statistics.const_data_ptr(), scale.data(), grad_logits.mutable_data_ptr()});
  }
  return grad_logits;
}

STABLE_TORCH_LIBRARY_IMPL(inception_kernels, CPU, m) {
  m.impl("label_smoothing_cross_entropy", TORCH_BOX(&label_smoothing_cross_entropy));
  m.impl("label_smoothing_cross_entropy_backward", TORCH_BOX(&label_smoothing_cross_entropy_backward));
}

}  // namespace ik
