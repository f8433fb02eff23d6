// What an instruction set offers label_smoothing_cross_entropy: a range of rows on the calling thread.
#pragma once
#include "label_smoothing_cross_entropy.h"

namespace ik::cpu {

struct LabelSmoothingTable {
  const char* forward_counter;
  const char* backward_counter;
  double (*sum_of_weights)(const void* weight, int64_t n);
  void (*forward)(const LabelSmoothingForward& args, int64_t row_begin, int64_t row_end);
  // weights: the sum of all class weights, K where there are none
  void (*backward)(const LabelSmoothingBackward& args, double weights, int64_t row_begin, int64_t row_end);
};

namespace portable {
const LabelSmoothingTable& label_smoothing_table(DType dtype);
}
namespace avx2 {
const LabelSmoothingTable& label_smoothing_table(DType dtype);
}
namespace avx512 {
const LabelSmoothingTable& label_smoothing_table(DType dtype);
}

}  // namespace ik::cpu
