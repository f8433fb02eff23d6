#include <algorithm>

#include "batch_norm.h"
#include "common/counters.h"
#include "cuda/conv2d_bn_act_sm90.h"
#include "cuda/conv2d_bn_act_sm90_kernels.h"
#include "cuda/conv2d_bn_act_sm90_plan.h"

namespace ik::cuda {

namespace {

constexpr int64_t kSmallestRows = 128;
constexpr int64_t kSmallestColumns = 64;

// One stride leads from every pixel to the next.
template <typename View>
bool has_joined_pixels(const View& view, int64_t P, int64_t Q) {
  return view.stride_h == Q * view.stride_w && view.stride_n == P * view.stride_h;
}

int64_t output_pixels(const ConvShape& shape) { return shape.N * shape.P() * shape.Q(); }

const ConvSm90Table& table_of(DType dtype) { return dtype == DType::kFloat16 ? conv2d_sm90_fp16 : conv2d_sm90_bf16; }

double predicted_clocks(const ConvSm90Kernel& kernel, const ConvShape& shape, int multiprocessors) {
  const int64_t tiles = ceil_div(output_pixels(shape), kernel.rows) * ceil_div(shape.K, kernel.columns);
  const double outputs = static_cast<double>(kernel.rows) * kernel.columns;
  const double stage = predicted_stage_clocks(outputs, kernel.stage_bytes, tiles, multiprocessors);
  return predicted_kernel_clocks(tiles, multiprocessors, depth_of(shape).iterations * stage, outputs);
}

struct Prepared {
  ConvSm90Args args;
  TensorMap x_map, weight_map;
};

Prepared prepare(const Conv2dForward& args, const ConvSm90Kernel& kernel, float* partial) {
  const ConvShape& shape = args.shape;
  const int64_t P = shape.P(), Q = shape.Q();
  const SliceDepth depth = depth_of(shape);
  const Swizzle swizzle = depth.swizzle();
  const NhwcInput x = with_plain_strides(args.x, shape.N, shape.H, shape.W, shape.C);
  const NhwcOutput y = with_plain_strides(args.y, shape.N, P, Q, shape.K);
  const NhwcInput residual = with_plain_strides(args.residual, shape.N, P, Q, shape.K);
  const int64_t taps = shape.R * shape.S;
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  const OctetEpilogue epilogue = {static_cast<const float*>(args.scale),
                                  static_cast<const float*>(args.shift),
                                  residual.data,
                                  y.data,
                                  residual.stride_w,
                                  y.stride_w,
                                  narrow(output_pixels(shape)),
                                  narrow(shape.K),
                                  args.activation};
  const ConvSm90Args kernel_args = {epilogue,
                                    partial,
                                    narrow(ceil_div(output_pixels(shape), kernel.rows)),
                                    narrow(ceil_div(shape.K, kernel.columns)),
                                    depth.iterations,
                                    depth.channels,
                                    narrow(shape.C),
                                    narrow(P),
                                    narrow(Q),
                                    narrow(shape.S),
                                    narrow(taps),
                                    narrow(shape.stride_h),
                                    narrow(shape.stride_w),
                                    narrow(shape.pad_h),
                                    narrow(shape.pad_w),
                                    narrow(shape.dilation_h),
                                    narrow(shape.dilation_w)};
  return {kernel_args, make_im2col_map({args.dtype, x, shape, depth.channels, kernel.rows, swizzle}),
          make_octet_map(args.dtype, args.packed_weight, shape.K, taps, shape.C, shape.C, depth.channels, swizzle)};
}

void launch(const Conv2dForward& args, int tile, float* partial, const Context& context) {
  const ConvSm90Kernel& kernel = table_of(args.dtype)[tile];
  const Prepared prepared = prepare(args, kernel, partial);
  const int tiles = prepared.args.m_tiles * prepared.args.n_tiles;
  kernel.launch(
      {prepared.x_map, prepared.weight_map, prepared.args, std::min(tiles, context.multiprocessors), context});
  count_kernel(args.dtype == DType::kFloat16 ? "conv2d_bn_act.forward.cuda_sm90_fp16"
                                             : "conv2d_bn_act.forward.cuda_sm90_bf16");
}

bool is_empty(const ConvShape& shape) { return output_pixels(shape) == 0 || shape.K == 0; }

// Statistics of runs of pixels, each half of a tile.
StatisticsTiles statistics_tiles(const Conv2dForward& args, int tile, const float* partial) {
  const int64_t pixels = output_pixels(args.shape);
  return {partial, 1, 1, pixels, args.shape.K, 1, 1, table_of(args.dtype)[tile].rows / kRingConsumers};
}

size_t partial_bytes(const StatisticsTiles& tiles) {
  const size_t bytes = static_cast<size_t>(ceil_div(tiles.Q, tiles.tile_q) * 2 * tiles.K) * sizeof(float);
  return static_cast<size_t>(ceil_div(static_cast<int64_t>(bytes), kCopyBytes) * kCopyBytes);
}

}  // namespace

const char* conv2d_sm90_unsupported(const Conv2dForward& args, const Context& context) {
  const ConvShape& shape = args.shape;
  const int64_t P = shape.P(), Q = shape.Q();
  if (context.sm != 90) return "the Hopper kernel needs compute capability 9.0";
  if (args.dtype != DType::kBFloat16 && args.dtype != DType::kFloat16) return "the Hopper kernel is for 16-bit types";
  if (shape.C % kCopyElements || shape.K % kCopyElements) return "channels are not multiples of 8";
  if (!im2col_fits(shape)) return "padding, window or stride are beyond the copy engine's im2col mode";
  constexpr int64_t kMost = (int64_t{1} << 31) - (int64_t{1} << 20);  // tiles and pixels are counted past the last one
  if (output_pixels(shape) > kMost) return "more than 2^31 output pixels";
  if (ceil_div(output_pixels(shape), kSmallestRows) * ceil_div(shape.K, kSmallestColumns) > kMost) {
    return "more than 2^31 tiles of the output";
  }
  if (is_empty(shape)) return nullptr;
  if (!has_aligned_pixels(with_plain_strides(args.x, shape.N, shape.H, shape.W, shape.C))) {
    return "pixels of x do not begin at multiples of 16 bytes";
  }
  const NhwcOutput y = with_plain_strides(args.y, shape.N, P, Q, shape.K);
  if (!has_aligned_pixels(y)) return "pixels of y do not begin at multiples of 16 bytes";
  if (!has_joined_pixels(y, P, Q)) return "the rows of y do not follow each other";
  if (args.residual.data) {
    const NhwcInput residual = with_plain_strides(args.residual, shape.N, P, Q, shape.K);
    if (!has_aligned_pixels(residual)) return "pixels of the residual do not begin at multiples of 16 bytes";
    if (!has_joined_pixels(residual, P, Q)) return "the rows of the residual do not follow each other";
  }
  if (!is_copy_aligned(args.packed_weight) || !is_copy_aligned(args.scale) || !is_copy_aligned(args.shift)) {
    return "weights, scale or shift do not begin at a multiple of 16 bytes";
  }
  return nullptr;
}

int conv2d_sm90_tiles() { return kConvSm90Kernels; }

ConvSm90Tile conv2d_sm90_tile(int index) {
  const ConvSm90Kernel& kernel = conv2d_sm90_bf16[index];
  return {kernel.rows, kernel.columns, kernel.statistics};
}

int conv2d_sm90_choice(const Conv2dForward& args, bool statistics, const Context& context) {
  const ConvSm90Table& table = table_of(args.dtype);
  int best = -1;
  double fewest = 0;
  for (int i = 0; i < kConvSm90Kernels; ++i) {
    if (statistics && !table[i].statistics) continue;
    const double clocks = predicted_clocks(table[i], args.shape, context.multiprocessors);
    if (best >= 0 && clocks >= fewest) continue;
    best = i;
    fewest = clocks;
  }
  return best;
}

double conv2d_sm90_clocks(const Conv2dForward& args, const Context& context) {
  const ConvSm90Kernel& kernel = table_of(args.dtype)[conv2d_sm90_choice(args, false, context)];
  return predicted_clocks(kernel, args.shape, context.multiprocessors);
}

size_t conv2d_sm90_workspace_bytes(const Conv2dForward& args, bool statistics, const Context& context) {
  if (!statistics || is_empty(args.shape)) return 0;
  const StatisticsTiles tiles = statistics_tiles(args, conv2d_sm90_choice(args, true, context), nullptr);
  return partial_bytes(tiles) + combine_statistics_workspace_bytes(tiles);
}

void conv2d_sm90_forward_tiled(const Conv2dForward& args, int tile, float* partial, const Context& context) {
  if (is_empty(args.shape)) return;
  launch(args, tile, partial, context);
}

void conv2d_sm90_forward(const Conv2dForward& args, void*, const Context& context) {
  conv2d_sm90_forward_tiled(args, conv2d_sm90_choice(args, false, context), nullptr, context);
}

void conv2d_sm90_forward_statistics(const Conv2dForward& args, float* mean, float* var, void* workspace,
                                    const Context& context) {
  if (is_empty(args.shape)) return;
  const int tile = conv2d_sm90_choice(args, true, context);
  float* const partial = static_cast<float*>(workspace);
  launch(args, tile, partial, context);
  const StatisticsTiles tiles = statistics_tiles(args, tile, partial);
  combine_statistics(tiles, mean, var, static_cast<unsigned char*>(workspace) + partial_bytes(tiles), context);
}

}  // namespace ik::cuda
