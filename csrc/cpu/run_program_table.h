// What an instruction set offers programs beyond the convolutions: pools and elementwise steps.
#pragma once
#include "cpu/kernel_table.h"

namespace ik::cpu {

// y = act(scale * pool(x) + shift + residual); C = K channels.
struct PoolTask {
  Geometry geometry;
  NhwcInput x;
  bool count_include_pad;  // average
  int64_t divisor;         // average; 0 = the size of the window
  Epilogue epilogue;
};

// y = act(scale * x + shift + residual) over N, H, W of the geometry. The channels of x need not be adjacent.
struct ElementwiseTask {
  Geometry geometry;
  NhwcInput x;
  int64_t x_stride_c;
  Epilogue epilogue;
};

// Units of a pool are rows of one image: unit = (n * P + p) * chunks + chunk, where a chunk is kPoolChunk channels.
constexpr int64_t kPoolChunk = 512;

struct ProgramTable {
  const char* max_pool2d_counter;  // of the operators
  const char* avg_pool2d_counter;
  const char* max_pool_counter;  // of programs
  const char* average_pool_counter;
  const char* elementwise_counter;
  void (*max_pool)(const PoolTask&, int64_t unit_begin, int64_t unit_end);
  void (*average_pool)(const PoolTask&, int64_t unit_begin, int64_t unit_end);
  void (*elementwise)(const ElementwiseTask&, int64_t row_begin, int64_t row_end);  // of N * H
};

namespace portable {
const ProgramTable& program_table(DType dtype);
}
namespace avx2 {
const ProgramTable& program_table(DType dtype);
}
namespace avx512 {
const ProgramTable& program_table(DType dtype);
}

const ProgramTable& program_table(DType dtype);  // of the instruction set in force

}  // namespace ik::cpu
