// The choice between the separable kernels, and what they share: the reasons to decline, and the packed weights.
#include <algorithm>
#include <limits>

#include "batch_norm.h"
#include "cuda/conv2d_pack.cuh"
#include "cuda/launch.h"
#include "cuda/separable_conv2d_kernels.h"
#include "cuda/separable_conv2d_pack.cuh"
#include "cuda/separable_conv2d_sm90.h"
#include "separable_conv2d.h"

namespace ik::cuda {
namespace {

constexpr int64_t kVectorChannels = 8;
constexpr int64_t kInt32 = std::numeric_limits<int32_t>::max();

int64_t padded_channels(const ConvShape& shape) {
  return (shape.C + kVectorChannels - 1) / kVectorChannels * kVectorChannels;
}

size_t element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

bool is_empty(const ConvShape& shape) { return shape.N == 0 || shape.K == 0; }

template <typename Bits>
void pack(const ConvShape& shape, const WeightView& depthwise, const WeightView& pointwise, void* packed_depthwise,
          void* packed_pointwise, const Context& context) {
  const int C = static_cast<int>(shape.C);
  const int S = static_cast<int>(shape.S);
  const int padded = static_cast<int>(padded_channels(shape));
  const auto blocks = [](int64_t count, int threads) {
    return dim3(static_cast<unsigned>((count + threads - 1) / threads));
  };
  const int64_t taps = shape.R * shape.S * padded;
  if (taps > 0) {
    IK_LAUNCH((separable::pack_depthwise_kernel<Bits>), blocks(taps, separable::kPackThreads),
              dim3(separable::kPackThreads), 0, context, depthwise, C, S, padded, taps,
              static_cast<Bits*>(packed_depthwise));
  }
  const int64_t products = shape.K * padded;
  if (products > 0) {
    IK_LAUNCH((conv2d_pack_kernel<Bits>), blocks(products, kPackThreads), dim3(kPackThreads), 0, context, pointwise, C,
              1, 1, padded, products, static_cast<Bits*>(packed_pointwise));
  }
}

enum class Kernel { kRows, kSm90, kTiles };

// Few channels and large images are bound by memory: the kernel that reads every input row once, wherever it has enough
// to do. Everything else is bound by the product: wgmma on Hopper where it fits, else mma.sync.
Kernel choose_kernel(const SeparableForward& args, bool statistics, const Context& context) {
  if (!statistics && separable::rows_can_run(args, context) && separable::rows_pay(args, context)) return Kernel::kRows;
  if (context.sm == 90 && !separable_sm90_unsupported(args, context)) return Kernel::kSm90;
  return Kernel::kTiles;
}

// In the workspace: [runs][2][K] of mean and deviations, then [runs] counts, then what the combination needs.
StatisticsTiles statistics_tiles(const SeparableForward& args, float* partial, const Context& context) {
  const ConvShape& shape = args.shape;
  const int64_t runs = separable::statistics_runs(args, context);
  StatisticsTiles tiles = {partial, shape.N, shape.P(), shape.Q(), shape.K, 1, 1, 1};
  tiles.counts = partial ? partial + runs * 2 * shape.K : nullptr;
  tiles.tiles = runs;
  return tiles;
}

size_t partial_bytes(const StatisticsTiles& tiles) {
  constexpr size_t kAlignment = 16;
  const size_t bytes = static_cast<size_t>(tiles.tiles * (2 * tiles.K + 1)) * sizeof(float);
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

const char* separable_unsupported(const SeparableForward& args, const Context& context) {
  const ConvShape& shape = args.shape;
  constexpr int64_t kLargestWindow = 7;
  constexpr int64_t kMostRuns = int64_t{1} << 24;  // of a strip; leaves room for every product of small integers
  if (args.dtype == DType::kFloat64) return "float64 runs on the reference backend";
  if (context.sm < 80) return "the CUDA kernels need compute capability 8.0 or newer";
  if (shape.C == 0) return "x has no channels";
  if (shape.R > kLargestWindow || shape.S > kLargestWindow) return "the depthwise window is larger than 7 x 7";
  const int64_t last = (shape.H - 1) * args.x.stride_h + (shape.W - 1) * args.x.stride_w + shape.C;
  if (last > kInt32 || shape.H > kMostRuns || shape.W > kMostRuns) return "one image of x has more than 2^31 elements";
  if (shape.P() * (shape.Q() + kVectorChannels) > kInt32 / 2) return "one image of y has more than 2^30 pixels";
  const int64_t reach = std::max(shape.dilation_h * shape.R + shape.pad_h + shape.stride_h,
                                 shape.dilation_w * shape.S + shape.pad_w + shape.stride_w);
  if (reach > kMostRuns) return "stride, padding or dilation is larger than 2^24";
  constexpr int64_t kFewestPixels = 32;  // of a tile
  if (shape.N * (shape.P() * shape.Q() / kFewestPixels + shape.P() + 1) * (shape.K / kFewestPixels + 1) > kInt32) {
    return "y has too many tiles";
  }
  return nullptr;
}

size_t separable_packed_depthwise_bytes(const ConvShape& shape, DType dtype) {
  return static_cast<size_t>(shape.R * shape.S * padded_channels(shape)) * element_bytes(dtype);
}

size_t separable_packed_pointwise_bytes(const ConvShape& shape, DType dtype) {
  return static_cast<size_t>(shape.K * padded_channels(shape)) * element_bytes(dtype);
}

void separable_pack(const ConvShape& shape, DType dtype, const WeightView& depthwise, const WeightView& pointwise,
                    void* packed_depthwise, void* packed_pointwise, const Context& context) {
  if (element_bytes(dtype) == 4) {
    pack<uint32_t>(shape, depthwise, pointwise, packed_depthwise, packed_pointwise, context);
  } else {
    pack<uint16_t>(shape, depthwise, pointwise, packed_depthwise, packed_pointwise, context);
  }
}

size_t separable_workspace_bytes(const SeparableForward& args, bool statistics, const Context& context) {
  if (is_empty(args.shape)) return 0;
  const Kernel kernel = choose_kernel(args, statistics, context);
  if (kernel == Kernel::kSm90) return separable_sm90_workspace_bytes(args, statistics, context);
  if (!statistics) return 0;
  const StatisticsTiles tiles = statistics_tiles(args, nullptr, context);
  return partial_bytes(tiles) + combine_statistics_workspace_bytes(tiles);
}

void separable_forward(const SeparableForward& args, void* workspace, const Context& context) {
  if (is_empty(args.shape)) return;
  switch (choose_kernel(args, false, context)) {
    case Kernel::kRows:
      return separable::rows_forward(args, context);
    case Kernel::kSm90:
      return separable_sm90_forward(args, workspace, context);
    case Kernel::kTiles:
      return separable::tiles_forward(args, nullptr, nullptr, context);
  }
}

void separable_forward_statistics(const SeparableForward& args, float* mean, float* var, void* workspace,
                                  const Context& context) {
  if (is_empty(args.shape)) return;
  if (choose_kernel(args, true, context) == Kernel::kSm90) {
    return separable_sm90_forward_statistics(args, mean, var, workspace, context);
  }
  const StatisticsTiles tiles = statistics_tiles(args, static_cast<float*>(workspace), context);
  separable::tiles_forward(args, static_cast<float*>(workspace), const_cast<float*>(tiles.counts), context);
  combine_statistics(tiles, mean, var, static_cast<char*>(workspace) + partial_bytes(tiles), context);
}

}  // namespace ik::cuda
