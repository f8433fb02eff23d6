// What an instruction set offers pointwise_depthwise_conv2d beyond the dense convolution: depthwise rows into the
// output.
#pragma once
#include "cpu/kernel_table.h"

namespace ik::cpu {

// One image. The geometry may be a band of rows, with a negative pad_h; its C and K are both the channels.
struct DepthwiseTask {
  Geometry geometry;
  NhwcInput x;
  const void* weight;  // as `pack` wrote it
  const void* scale;   // [K], accumulation type; null = 1
  const void* shift;   // [K]; null = 0
  Activation activation;
  NhwcOutput y;
};

struct DepthwiseTable {
  const char* counter;
  size_t (*weight_bytes)(const Geometry&);
  void (*pack)(const Geometry&, const WeightView&, void* packed);
  void (*rows)(const DepthwiseTask&, int64_t p_begin, int64_t p_end);
};

namespace portable {
const DepthwiseTable& depthwise_table(DType dtype);
}
namespace avx2 {
const DepthwiseTable& depthwise_table(DType dtype);
}
namespace avx512 {
const DepthwiseTable& depthwise_table(DType dtype);
}

}  // namespace ik::cpu
