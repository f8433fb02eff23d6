#include <algorithm>
#include <limits>

#include "batch_norm.h"
#include "common/counters.h"
#include "cuda/copied_views.h"
#include "cuda/separable_conv2d_sm90.h"
#include "cuda/separable_conv2d_sm90_kernels.h"

namespace ik::cuda {
namespace {

static_assert(separable_sm90::kMaxCluster == kSeparableSm90MaxCluster);

using namespace separable_sm90;

constexpr int64_t kInt32 = std::numeric_limits<int32_t>::max();

bool is_empty(const ConvShape& shape) { return shape.N == 0 || shape.K == 0 || shape.P() <= 0 || shape.Q() <= 0; }

template <typename View>
bool has_short_images(const View& view, int64_t H, int64_t W, int64_t C) {
  return (H - 1) * view.stride_h + (W - 1) * view.stride_w + C <= kInt32;
}

template <typename View>
Pixels pixels_of(const View& view) {
  return {view.stride_n, static_cast<int>(view.stride_h), static_cast<int>(view.stride_w)};
}

const Table& table_of(DType dtype) { return dtype == DType::kFloat16 ? kernels_fp16 : kernels_bf16; }

// How the work is cut up for one kernel and cluster size.
struct Cut {
  int64_t row_tiles, column_tiles, groups;

  Cut(const ConvShape& shape, const Kernel& kernel, int cluster)
      : row_tiles(ceil_div(shape.P(), kTileRows)),
        column_tiles(ceil_div(shape.Q(), kernel.columns)),
        groups(ceil_div(ceil_div(shape.K, kernel.channels), cluster)) {}
  int64_t items(const ConvShape& shape) const { return shape.N * row_tiles * column_tiles * groups; }
};

struct Choice {
  const Kernel* kernel;
  int cluster;
  int clusters;
};

// Clocks that a block spends on a chunk of 64 channels: of the tensor cores, of shared memory and of the schedulers,
// counted as in separable_conv2d_sm90.cuh. The last ones are given for a column of the halo.
double clocks_of_chunk(const Kernel& kernel, int cluster) {
  constexpr double kProductsPerClock = 2048;
  constexpr double kHaloShared = 36;
  constexpr double kHaloSlots = 65;
  constexpr double kProductSlots = 1050;
  const double rows = kernel.rows_of_a;
  const double halo = static_cast<double>(kernel.pitch) / cluster;
  const double tensor = rows * kernel.channels * kChunk / kProductsPerClock;
  const double reads_of_a = rows > kConsumers * kSlabRows ? 256 : 128;  // a third slab is read by both warpgroups
  const double copies = 2.0 * rows * (cluster - 1) / cluster;
  const double shared = tensor / 2 + reads_of_a + kernel.channels + kHaloShared * halo + copies;
  return std::max({tensor, shared, kProductSlots + kHaloSlots * halo});
}

double predicted_clocks(const ConvShape& shape, const Kernel& kernel, int cluster, int clusters) {
  constexpr double kOutputsPerClock = 24;
  const double outputs = static_cast<double>(kernel.rows_of_a) * kernel.channels;
  const double waves = static_cast<double>(ceil_div(Cut(shape, kernel, cluster).items(shape), clusters));
  const double chunks = static_cast<double>(ceil_div(shape.C, kChunk));
  return waves * (chunks * clocks_of_chunk(kernel, cluster) + outputs / kOutputsPerClock);
}

Choice choose(const SeparableForward& args, const Context& context) {
  Choice best = {};
  double fewest = 0;
  for (const Kernel& kernel : table_of(args.dtype)) {
    const int64_t output_tiles = ceil_div(args.shape.K, kernel.channels);
    for (int cluster = 1; cluster <= std::min<int64_t>(kMaxCluster, output_tiles); ++cluster) {
      const int resident = kernel.resident_clusters(cluster, context);
      if (resident == 0) continue;
      const double clocks = predicted_clocks(args.shape, kernel, cluster, resident);
      if (best.kernel && clocks >= fewest) continue;
      best = {&kernel, cluster, resident};
      fewest = clocks;
    }
  }
  return best;
}

uint32_t pair_of(uint32_t bits) { return bits << 16 | bits; }

// Of none, relu and relu6, for a pair of bf16 or fp16.
uint32_t lower_bound(Activation activation, DType dtype) {
  if (activation != Activation::kNone) return 0;
  return pair_of(dtype == DType::kFloat16 ? 0xfc00 : 0xff80);  // -inf
}

uint32_t upper_bound(Activation activation, DType dtype) {
  const bool half = dtype == DType::kFloat16;
  if (activation == Activation::kRelu6) return pair_of(half ? 0x4600 : 0x40c0);
  return pair_of(half ? 0x7c00 : 0x7f80);  // inf
}

Args kernel_args(const SeparableForward& args, const Choice& choice) {
  const ConvShape& shape = args.shape;
  const int64_t P = shape.P(), Q = shape.Q();
  const Cut cut(shape, *choice.kernel, choice.cluster);
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  const auto count = [](int64_t value) { return static_cast<uint32_t>(value); };
  Args made = {};
  made.depthwise_bias = static_cast<const float*>(args.depthwise_bias);
  made.scale = static_cast<const float*>(args.scale);
  made.shift = static_cast<const float*>(args.shift);
  made.residual = args.residual.data;
  made.y = args.y.data;
  made.residual_pixels = pixels_of(with_plain_strides(args.residual, shape.N, P, Q, shape.K));
  made.y_pixels = pixels_of(with_plain_strides(args.y, shape.N, P, Q, shape.K));
  made.C = narrow(shape.C);
  made.P = narrow(P);
  made.Q = narrow(Q);
  made.K = narrow(shape.K);
  made.pad_h = narrow(shape.pad_h);
  made.pad_w = narrow(shape.pad_w);
  made.chunks = count(ceil_div(shape.C, kChunk));
  made.halves = count(ceil_div(shape.C, kHalfChunk));
  made.items = count(cut.items(shape));
  made.cluster = count(choice.cluster);
  made.clusters = std::min(made.items, count(choice.clusters));
  made.items_of_each = made.items / made.clusters;
  made.items_left = made.items % made.clusters;
  made.by_cluster = FastDivide(choice.cluster);
  made.by_chunks = FastDivide(made.chunks);
  made.by_halves = FastDivide(made.halves);
  made.n_groups = FastDivide(cut.groups);
  made.row_tiles = FastDivide(cut.row_tiles);
  made.column_tiles = FastDivide(cut.column_tiles);
  made.input_relu = args.input_activation == Activation::kRelu;
  made.mid_relu = args.mid_activation == Activation::kRelu;
  made.low = lower_bound(args.activation, args.dtype);
  made.high = upper_bound(args.activation, args.dtype);
  return made;
}

void launch(const SeparableForward& args, const Choice& choice, const Context& context) {
  const ConvShape& shape = args.shape;
  const Kernel& kernel = *choice.kernel;
  const NhwcInput x = with_plain_strides(args.x, shape.N, shape.H, shape.W, shape.C);
  const TensorMap x_map = make_tensor_map({args.dtype,
                                           x.data,
                                           {shape.C, shape.W, shape.H, shape.N},
                                           {x.stride_w, x.stride_h, x.stride_n},
                                           {kChunk, kernel.pitch, kHaloRows, 1},
                                           Swizzle::kNone});
  const TensorMap taps_map = make_tensor_map(
      {args.dtype, args.packed_depthwise, {shape.C, kTaps}, {shape.C}, {kChunk, kTaps}, Swizzle::kNone});
  const TensorMap weight_map =
      make_octet_map(args.dtype, args.packed_pointwise, shape.K, 1, shape.C, shape.C, kHalfChunk, Swizzle::k64);
  kernel.launch({x_map, taps_map, weight_map, kernel_args(args, choice), context});
  count_kernel(args.dtype == DType::kFloat16 ? "separable_conv2d.forward.cuda_sm90_fp16"
                                             : "separable_conv2d.forward.cuda_sm90_bf16");
}

const char* unsupported_views(const SeparableForward& args) {
  const ConvShape& shape = args.shape;
  const int64_t P = shape.P(), Q = shape.Q();
  const NhwcOutput y = with_plain_strides(args.y, shape.N, P, Q, shape.K);
  const NhwcInput residual = with_plain_strides(args.residual, shape.N, P, Q, shape.K);
  if (!has_aligned_pixels(with_plain_strides(args.x, shape.N, shape.H, shape.W, shape.C))) {
    return "pixels of x do not begin at multiples of 16 bytes";
  }
  if (!has_aligned_pixels(y)) return "pixels of y do not begin at multiples of 16 bytes";
  if (!has_aligned_pixels(residual)) return "pixels of the residual do not begin at multiples of 16 bytes";
  if (!has_short_images(y, P, Q, shape.K) || !has_short_images(residual, P, Q, shape.K)) {
    return "one image of y or of the residual spans more than 2^31 elements";
  }
  if (!is_copy_aligned(args.packed_depthwise) || !is_copy_aligned(args.packed_pointwise) ||
      !is_copy_aligned(args.depthwise_bias) || !is_copy_aligned(args.scale) || !is_copy_aligned(args.shift)) {
    return "weights, bias, scale or shift do not begin at a multiple of 16 bytes";
  }
  return nullptr;
}

bool is_relu_or_none(Activation activation) {
  return activation == Activation::kNone || activation == Activation::kRelu;
}

}  // namespace

const char* separable_sm90_unsupported(const SeparableForward& args, const Context& context) {
  const ConvShape& shape = args.shape;
  if (context.sm != 90) return "the Hopper kernel needs compute capability 9.0";
  if (args.dtype != DType::kBFloat16 && args.dtype != DType::kFloat16) return "the Hopper kernel is for 16-bit types";
  if (shape.R != kWindow || shape.S != kWindow) return "the Hopper kernel's depthwise window is 3 x 3";
  if (shape.stride_h != 1 || shape.stride_w != 1) return "the Hopper kernel's depthwise stride is 1";
  if (shape.dilation_h != 1 || shape.dilation_w != 1) return "the Hopper kernel's depthwise dilation is 1";
  if (shape.C == 0 || shape.C % kCopyElements || shape.K % kCopyElements) return "channels are not multiples of 8";
  if (!is_relu_or_none(args.input_activation) || !is_relu_or_none(args.mid_activation)) {
    return "the Hopper kernel's activations before the product are relu and none";
  }
  if (!is_relu_or_none(args.activation) && args.activation != Activation::kRelu6) {
    return "the Hopper kernel's last activations are relu, relu6 and none";
  }
  if (is_empty(shape)) return nullptr;
  constexpr int64_t kNarrowest = 10;  // columns of a tile
  constexpr int64_t kFewestChannels = 128;
  const int64_t tiles = shape.N * ceil_div(shape.P(), kTileRows) * ceil_div(shape.Q(), kNarrowest);
  if (tiles * ceil_div(shape.K, kFewestChannels) * ceil_div(shape.C, kHalfChunk) > kInt32 / kMaxCluster) {
    return "y has too many tiles";
  }
  return unsupported_views(args);
}

size_t separable_sm90_workspace_bytes(const SeparableForward& args, bool statistics, const Context&) {
  const ConvShape& shape = args.shape;
  if (!statistics || is_empty(shape)) return 0;
  return batch_statistics_workspace_bytes(shape.N, shape.P(), shape.Q(), shape.K);
}

int separable_sm90_tiles() { return kKernels; }

SeparableSm90Tile separable_sm90_tile(int index) { return {kernels_bf16[index].columns, kernels_bf16[index].channels}; }

SeparableSm90Choice separable_sm90_choice(const SeparableForward& args, const Context& context) {
  const Choice choice = choose(args, context);
  return {static_cast<int>(choice.kernel - table_of(args.dtype)), choice.cluster};
}

void separable_sm90_forward_tiled(const SeparableForward& args, int tile, int cluster, const Context& context) {
  if (is_empty(args.shape)) return;
  const Kernel& kernel = table_of(args.dtype)[tile];
  launch(args, {&kernel, cluster, kernel.resident_clusters(cluster, context)}, context);
}

void separable_sm90_forward(const SeparableForward& args, void*, const Context& context) {
  if (is_empty(args.shape)) return;
  launch(args, choose(args, context), context);
}

void separable_sm90_forward_statistics(const SeparableForward& args, float* mean, float* var, void* workspace,
                                       const Context& context) {
  const ConvShape& shape = args.shape;
  if (is_empty(shape)) return;
  launch(args, choose(args, context), context);
  const NhwcInput z = {args.y.data, args.y.stride_n, args.y.stride_h, args.y.stride_w};
  batch_statistics(shape.N, shape.P(), shape.Q(), shape.K, args.dtype, z, mean, var, workspace, context);
}

}  // namespace ik::cuda
