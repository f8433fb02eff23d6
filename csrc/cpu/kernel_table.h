// What an instruction set offers the forward operators. The operators (compiled without extra flags) check, partition
// and run threads; the kernels compute one tile of one output on the calling thread.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/types.h"

namespace ik::cpu {

// A convolution's geometry with the output size as given, so that a band of rows is a geometry too: its pad_h may be
// negative, and first_p is its first output row in the whole. An input position outside [0, H) x [0, W) reads zero.
struct Geometry {
  int64_t N, C, H, W;
  int64_t K, R, S;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  int64_t P, Q;
  int64_t first_p = 0;
};

// y = act(scale * (A * weight) + shift + residual): the part that every product shares.
struct Epilogue {
  const void* scale;  // [K], accumulation type; null = 1
  const void* shift;  // [K]; null = 0
  NhwcInput residual;
  Activation activation;
  NhwcOutput y;
};

struct ConvTask {
  Geometry geometry;
  NhwcInput x;
  const void* weight;  // as the kernel that runs it packs it
  Epilogue epilogue;
  const WeightView* unpacked = nullptr;  // instead of `weight`, where ConvKernels::packs_panels
};

struct SeparableTask {
  Geometry geometry;  // the window is that of the depthwise part
  NhwcInput x;
  const void* depthwise;       // as depthwise_pack wrote it
  const void* pointwise;       // as pointwise_pack wrote it
  const void* depthwise_bias;  // [C], accumulation type; null = 0
  Activation input_activation, mid_activation;
  Epilogue epilogue;
  const WeightView* unpacked = nullptr;  // instead of `pointwise`, where SeparableKernels::packing_rows
};

// Rows number the output pixels of all images in the order the kernel chose; panels number groups of panel_width output
// channels. Any split of both gives the same bits.
struct Tile {
  int64_t row_begin, row_end;
  int64_t panel_begin, panel_end;
};

// One way to compute a dense convolution.
struct ConvKernels {
  const char* counter;
  size_t (*weight_bytes)(const Geometry&);
  void (*pack)(const Geometry&, const WeightView&, void* packed, int64_t panel_begin, int64_t panel_end);
  int64_t (*rows)(const Geometry&);
  int64_t (*tile_rows)(const Geometry&);  // the most rows a tile should have
  void (*tile)(const ConvTask&, const Tile&);
  // Output rows that are computed together: where the input holds no more than a band needs, the band must begin and
  // end at multiples of it to have the bits of the whole.
  int64_t (*band_rows)(const Geometry&);
  // Whether tiles of so many rows and all panels should pack each panel when they come to it; null where none can.
  bool (*packs_panels)(const Geometry&, int64_t tile_rows);
};

// One way to compute a separable convolution.
struct SeparableKernels {
  const char* counter;
  size_t (*pointwise_bytes)(const Geometry&);
  void (*pointwise_pack)(const Geometry&, const WeightView&, void* packed, int64_t panel_begin, int64_t panel_end);
  int64_t (*rows)(const Geometry&);
  int64_t (*panels)(const Geometry&);
  int64_t (*tile_rows)(const Geometry&);  // the most rows a tile should have
  void (*tile)(const SeparableTask&, const Tile&);
  // The most rows of a tile that packs each panel when it comes to it; null where none can.
  int64_t (*packing_rows)(const Geometry&);
};

struct KernelTable {
  int format;  // of packed weights: differs between tables whose formats differ
  const char* name;
  const char* pair_counter;
  int64_t row_granule;  // rows are best split at multiples of this
  int64_t panel_width;

  bool (*by_winograd)(const Geometry&);  // whether packed weights are those of `winograd`
  // Whether those that are packed for one use with so many images are.
  bool (*by_winograd_once)(const Geometry&, int64_t images);
  // Whether the images are too small for `winograd` and its packed weights must be restored.
  bool (*by_restored)(const Geometry&);
  ConvKernels conv;
  ConvKernels winograd;  // null where nothing is computed by Winograd's algorithm
  ConvKernels restored;  // with weights that `winograd` packed; null where by_restored never holds

  size_t (*depthwise_weight_bytes)(const Geometry&);
  void (*depthwise_pack)(const Geometry&, const WeightView&, void* packed);
  bool (*by_strassen)(const Geometry&);  // whether packed weights are those of `strassen`
  SeparableKernels separable;
  SeparableKernels strassen;  // products by Strassen's algorithm; null where it does not pay
};

// Of a dense convolution whose weights are packed once and used often. Weights are packed alike for images of all
// sizes; of a band of rows the kernels are those of the whole image.
inline const ConvKernels& conv_kernels(const KernelTable& table, const Geometry& geometry) {
  if (!table.by_winograd(geometry)) return table.conv;
  return table.by_restored(geometry) ? table.restored : table.winograd;
}
// Of a separable convolution whose weights are packed once and used often.
inline const SeparableKernels& separable_kernels(const KernelTable& table, const Geometry& geometry) {
  return table.by_strassen(geometry) ? table.strassen : table.separable;
}

namespace portable {
const KernelTable& kernel_table(DType dtype);
}
namespace avx2 {
const KernelTable& kernel_table(DType dtype);
}
namespace avx512 {
const KernelTable& kernel_table(DType dtype);
}
namespace avx512bf16 {
const KernelTable& kernel_table_bf16();
}
namespace amx {
const KernelTable& kernel_table_bf16();
}

// The table in force for this dtype.
const KernelTable& kernel_table(DType dtype);

}  // namespace ik::cpu
