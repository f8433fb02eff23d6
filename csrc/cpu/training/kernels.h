// The training kernels of one instruction set and dtype: work on ranges, no threads, no allocation. The functions of
// batch_norm.h, conv2d_bn_act.h and separable_conv2d.h cut their problem into ranges that depend on the shape alone,
// hand them to the pool, and reduce partial sums in a fixed order.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../../batch_norm.h"
#include "../../conv2d_bn_act.h"
#include "../../separable_conv2d.h"

namespace ik::cpu::training {

// u = (z - mean) * scale + shift + residual; grad_z = scale * grad_u - (k1 + (z - mean) * k2), k1 = k2 = 0 outside
// training. All [K].
struct NormCoefficients {
  const void* mean;
  const void* scale;
  const void* shift;
  const void* k1;
  const void* k2;
};

// Gradient of a dense weight; with `depthwise`, of the pointwise weight behind a recomputed depthwise convolution.
struct WeightGradient {
  ConvShape shape;
  NhwcInput x;
  NhwcInput grad_z;
  bool columns;           // few channels: window and channels form one axis, kernel[r][s][c]
  const void* depthwise;  // packed by pack_depthwise; null = dense
  Activation input_activation;
  Activation mid_activation;
};

// What one call adds to a weight gradient: output rows [row0, row1) of N * P, panels [k0, k1) of output channels and
// [c0, c1) of input channels (with WeightGradient::columns, of the axis that holds them).
struct WeightBlock {
  int64_t row0, row1;
  int64_t k0, k1;
  int64_t c0, c1;
};

// Where register blocks of a weight gradient lie, in elements of the accumulation type.
struct WeightSums {
  void* data;
  int64_t stride_c_panel, stride_tap, stride_k_panel;
  int64_t stride_row;  // from one output channel to the next
  bool whole;          // blocks at the edges are stored whole; otherwise only the channels that there are
};

struct WeightScratch {
  void* strip;          // one panel of channels of the input pixels under a chunk
  void* product;        // one panel of the depthwise output; unused when dense
  void* grad;           // [k panel][pixel][rows]
  void* pairs;          // products of bf16: a panel as pairs of pixels
  int64_t* row_offset;  // one entry for each output row of the chunk, then R * S + pixels of working space
};

// Everything about a separable layer's data gradient that does not depend on the tile.
struct SeparableData {
  const SeparableBackward* args;
  const void* packed_depthwise;  // written by pack_depthwise
};

// One tile: grad_x rows [h0, h1) of image n, panels [c0, c1) of channels; the depthwise weight gradient sums over
// output rows [own0, own1).
struct SeparableTile {
  int64_t n, h0, h1;
  int64_t c0, c1;
  int64_t own0, own1;
  int64_t p0, p1;      // output rows whose gradient the tile needs
  NhwcInput grad_mid;  // [1, p1 - p0, Q, C]: pointwise data gradient of those rows
};

struct SeparableScratch {
  void* strip;       // one panel of act(x)
  void* grad_mid;    // one panel of the gradient of the depthwise output, zero padded
  void* line;        // max(Q, W) pixels of a panel
  void* weights;     // R * S vectors of a panel
  int64_t* offsets;  // 2 * R * S
};

// The product of a weight gradient.
struct WeightKernels {
  // Adds to the sums, or if `first` writes them.
  void (*gradient)(const WeightGradient& args, const WeightBlock& block, const WeightScratch& scratch,
                   const WeightSums& sums, bool first);
  // k panels [k0, k1) of grad_weight from `count` whole sums, `stride` elements apart. False if something is not finite
  // that has to be computed by the definition.
  bool (*finish)(const WeightGradient& args, const WeightSums& sums, int64_t count, int64_t stride, int64_t k0,
                 int64_t k1, const WeightOutput& grad_weight);
  // The same in the accumulation type.
  bool (*finish_wide)(const WeightGradient& args, const WeightSums& sums, int64_t count, int64_t stride, int64_t k0,
                      int64_t k1, const WeightOutput& grad_weight);
};

// The gradient of weights of R x S taps by Winograd's algorithm, in blocks of height x width pixels of grad_z.
struct WinogradGradient {
  int64_t R, S;
  int64_t height, width, products;
  int64_t most_weights;  // of all taps together so many: the sums of more go through memory for every chunk
  WeightKernels kernels;
};

struct Kernels {
  const char* norm_forward_name;
  const char* norm_backward_name;
  const char* conv_name;
  const char* winograd_name;       // of the weights' gradient
  const char* winograd_data_name;  // of x's
  const char* separable_name;
  int64_t storage_bytes, accumulator_bytes;
  int64_t rows;  // register block: rows x columns
  int64_t columns;
  bool sums_in_place;  // weight_gradient can add to the gradient itself

  // Pixels [m0, m1) of [N, P, Q, K]: shift [K], sum [K] of z - shift, square [K] of its squares.
  void (*statistics)(const ScaleShiftAct& args, int64_t m0, int64_t m1, void* shift, void* sum, void* square);
  void (*scale_shift_act)(const ScaleShiftAct& args, int64_t m0, int64_t m1);
  // sum [K] of grad_u, product [K] of grad_u * (z - mean).
  void (*norm_reduce)(const BnActBackward& args, const NormCoefficients& norm, int64_t m0, int64_t m1, void* sum,
                      void* product);
  void (*norm_apply)(const BnActBackward& args, const NormCoefficients& norm, int64_t m0, int64_t m1);

  // [panel][R * S + 1][columns]: taps, then the bias.
  void (*pack_depthwise)(const ConvShape& shape, const WeightView& weight, const void* bias, void* packed);
  WeightKernels weight;
  const WinogradGradient* winograd;
  int64_t winograd_count;

  // partial [c panel][R * S + 1][columns], written where the tile is: its weight and bias gradients.
  void (*separable_data)(const SeparableData& args, const SeparableTile& tile, const SeparableScratch& scratch,
                         void* partial);
  // out (dtype of the layer, accumulation type) from doubles.
  void (*store_doubles)(const double* values, int64_t count, void* out);
  void (*store_doubles_wide)(const double* values, int64_t count, void* out);
};

const Kernels& kernels_portable(DType dtype);
const Kernels& kernels_avx2(DType dtype);
const Kernels& kernels_avx512(DType dtype);
const Kernels& kernels_avx512bf16(DType dtype);
const Kernels& kernels_amx(DType dtype);

// Those of the instruction set in force.
const Kernels& kernels(DType dtype);

}  // namespace ik::cpu::training
