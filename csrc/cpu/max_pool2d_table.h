// What an instruction set offers max_pool2d: a range of rows on the calling thread.
#pragma once
#include "max_pool2d.h"

namespace ik::cpu {

struct MaxPoolTable {
  const char* forward_counter;
  const char* backward_counter;
  void (*forward)(const MaxPoolForward& args, int64_t row_begin, int64_t row_end);    // of N * P
  void (*backward)(const MaxPoolBackward& args, int64_t row_begin, int64_t row_end);  // of N * H
};

namespace portable {
const MaxPoolTable& max_pool2d_table(DType dtype);
}
namespace avx2 {
const MaxPoolTable& max_pool2d_table(DType dtype);
}
namespace avx512 {
const MaxPoolTable& max_pool2d_table(DType dtype);
}

}  // namespace ik::cpu
