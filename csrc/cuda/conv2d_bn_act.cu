#include <type_traits>

#include "batch_norm.h"
#include "common/counters.h"
#include "conv2d_bn_act.h"
#include "cuda/conv2d_bn_act.cuh"
#include "cuda/conv2d_bn_act_sm90.h"
#include "cuda/conv2d_geometry.h"
#include "cuda/conv2d_pack.cuh"
#include "cuda/launch.h"

namespace ik::cuda {

namespace {

using LargeTile = TileShape<128, 128, 2, 2>;
using TallTile = TileShape<256, 64, 4, 1>;
using MediumTile = TileShape<128, 64, 2, 2>;
using SmallTile = TileShape<64, 64, 2, 2>;
using StemTile = TileShape<256, 32, 4, 1>;

constexpr int kStemChannels = 4;

struct TileSize {
  int64_t rows, columns;
};

template <typename Tile>
constexpr TileSize kSizeOf = {Tile::kRows, Tile::kColumns};

enum class Plan { kLarge, kTall, kMedium, kSmall, kGathered, kStem };

struct Choice {
  Plan plan;
  TileSize tile;
  double overhead;  // small tiles read more of their operands for each multiplication
};

constexpr Choice kLarge = {Plan::kLarge, kSizeOf<LargeTile>, 1.0};
constexpr Choice kTall = {Plan::kTall, kSizeOf<TallTile>, 1.05};
constexpr Choice kMedium = {Plan::kMedium, kSizeOf<MediumTile>, 1.15};
constexpr Choice kSmall = {Plan::kSmall, kSizeOf<SmallTile>, 1.5};
constexpr Choice kGathered = {Plan::kGathered, kSizeOf<MediumTile>, 1.0};
constexpr Choice kStem = {Plan::kStem, kSizeOf<StemTile>, 1.0};

// A product's cost on the busiest multiprocessor.
double cost(const ConvShape& shape, const Choice& choice, int multiprocessors) {
  const TileSize tile = choice.tile;
  const int64_t tiles = divide_up(pixel_count(shape), tile.rows) * divide_up(shape.K, tile.columns);
  return static_cast<double>(divide_up(tiles, multiprocessors) * tile.rows * tile.columns) * choice.overhead;
}

// Every plan adds up a pixel's products in the same order: the choice does not change a bit of the result.
Choice choose(const Conv2dForward& args, bool tensor_cores, const Context& context) {
  if (!has_vectors(args.x, args.shape.C, args.dtype)) return args.shape.C <= kStemChannels ? kStem : kGathered;
  Choice best = kMedium;
  for (const Choice& each : {kLarge, kTall, kSmall}) {
    if (!tensor_cores && each.plan != Plan::kSmall) continue;
    const bool better =
        cost(args.shape, each, context.multiprocessors) < cost(args.shape, best, context.multiprocessors);
    if (better) best = each;
  }
  return best;
}

bool uses_tensor_cores(const Conv2dForward& args, const Context& context) {
  return args.dtype != DType::kFloat32 || context.allow_tf32;
}

Epilogue epilogue_of(const Conv2dForward& args) {
  return {static_cast<const float*>(args.scale),
          static_cast<const float*>(args.shift),
          args.residual.data,
          args.y.data,
          static_cast<int>(args.shape.K),
          args.activation,
          has_octets(args.residual, args.shape.K, args.dtype),
          has_octets(args.y, args.shape.K, args.dtype)};
}

Conv2dKernel kernel_arguments(const Conv2dForward& args, TileSize tile, float* partials) {
  return {conv_geometry(args.shape, args.dtype, args.x, args.packed_weight),
          epilogue_of(args),
          args.y.stride_n,
          args.y.stride_h,
          args.y.stride_w,
          args.residual.stride_n,
          args.residual.stride_h,
          args.residual.stride_w,
          FastDivide(divide_up(args.shape.K, tile.columns)),
          partials};
}

template <typename Product, typename Tile, typename Loader>
void launch(const Conv2dForward& args, float* partials, const Context& context) {
  const int64_t rows = divide_up(pixel_count(args.shape), Tile::kRows);
  const int64_t columns = divide_up(args.shape.K, Tile::kColumns);
  const dim3 grid(static_cast<unsigned>(rows * columns));
  IK_LAUNCH((conv2d_kernel<Product, Tile, Loader>), grid, dim3(Tile::kThreads), sizeof(ConvShared<Tile>), context,
            kernel_arguments(args, kSizeOf<Tile>, partials));
}

template <typename Product>
void launch_plan(const Conv2dForward& args, Plan plan, float* partials, const Context& context) {
  using T = typename Product::Type;
  constexpr bool kTensorCores = !std::is_same_v<Product, Fp32Product>;
  if constexpr (kTensorCores) {
    if (plan == Plan::kLarge) return launch<Product, LargeTile, VectorLoader<LargeTile, T>>(args, partials, context);
    if (plan == Plan::kTall) return launch<Product, TallTile, VectorLoader<TallTile, T>>(args, partials, context);
  }
  if (plan == Plan::kSmall) return launch<Product, SmallTile, VectorLoader<SmallTile, T>>(args, partials, context);
  if (plan == Plan::kMedium) return launch<Product, MediumTile, VectorLoader<MediumTile, T>>(args, partials, context);
  if (plan == Plan::kStem) {
    return launch<Product, StemTile, ElementLoader<StemTile, T, kStemChannels>>(args, partials, context);
  }
  launch<Product, MediumTile, ElementLoader<MediumTile, T>>(args, partials, context);
}

void run(const Conv2dForward& args, float* partials, const Context& context) {
  const bool tensor_cores = uses_tensor_cores(args, context);
  const Plan plan = choose(args, tensor_cores, context).plan;
  switch (args.dtype) {
    case DType::kBFloat16:
      count_kernel("conv2d_bn_act.forward.cuda_sm80_bf16");
      return launch_plan<Bf16Product>(args, plan, partials, context);
    case DType::kFloat16:
      count_kernel("conv2d_bn_act.forward.cuda_sm80_fp16");
      return launch_plan<Fp16Product>(args, plan, partials, context);
    default:
      break;
  }
  if (tensor_cores) {
    count_kernel("conv2d_bn_act.forward.cuda_sm80_tf32");
    return launch_plan<Tf32Product>(args, plan, partials, context);
  }
  count_kernel("conv2d_bn_act.forward.cuda_sm80_fp32");
  launch_plan<Fp32Product>(args, plan, partials, context);
}

bool uses_sm90(const Conv2dForward& args, const Context& context) {
  return context.sm == 90 && !conv2d_sm90_unsupported(args, context);
}

bool is_empty(const ConvShape& shape) { return pixel_count(shape) == 0 || shape.K == 0; }

StatisticsTiles statistics_tiles(const Conv2dForward& args, const float* partials, const Context& context) {
  const TileSize tile = choose(args, uses_tensor_cores(args, context), context).tile;
  return {partials, 1, 1, pixel_count(args.shape), args.shape.K, 1, 1, tile.rows};
}

size_t partial_bytes(const StatisticsTiles& tiles) {
  const int64_t count = divide_up(tiles.Q, tiles.tile_q) * 2 * tiles.K;
  return static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(float)), 16));
}

template <typename Bits>
void launch_pack(const ConvShape& shape, const WeightView& weight, void* packed, const Context& context) {
  const int64_t channels = round_up(shape.C, kChannelStep);
  const int64_t count = shape.K * shape.R * shape.S * channels;
  const dim3 grid(static_cast<unsigned>(divide_up(count, kPackThreads)));
  IK_LAUNCH(conv2d_pack_kernel<Bits>, grid, dim3(kPackThreads), 0, context, weight, static_cast<int>(shape.C),
            static_cast<int>(shape.S), static_cast<int>(shape.R * shape.S), static_cast<int>(channels), count,
            static_cast<Bits*>(packed));
}

}  // namespace

const char* conv2d_unsupported(const Conv2dForward& args, const Context& context) {
  if (context.sm < 80) return "compute capability below 8.0";
  return geometry_unsupported(args.shape, args.dtype, args.x);
}

size_t conv2d_packed_bytes(const ConvShape& shape, DType dtype) {
  return static_cast<size_t>(shape.K * shape.R * shape.S * round_up(shape.C, kChannelStep) * element_bytes(dtype));
}

void conv2d_pack(const ConvShape& shape, DType dtype, const WeightView& weight, void* packed, const Context& context) {
  if (conv2d_packed_bytes(shape, dtype) == 0) return;
  if (dtype == DType::kFloat32) return launch_pack<uint32_t>(shape, weight, packed, context);
  launch_pack<uint16_t>(shape, weight, packed, context);
}

size_t conv2d_workspace_bytes(const Conv2dForward& args, bool statistics, const Context& context) {
  if (is_empty(args.shape)) return 0;
  if (uses_sm90(args, context)) return conv2d_sm90_workspace_bytes(args, statistics, context);
  if (!statistics) return 0;
  const StatisticsTiles tiles = statistics_tiles(args, nullptr, context);
  return partial_bytes(tiles) + combine_statistics_workspace_bytes(tiles);
}

void conv2d_forward(const Conv2dForward& args, void* workspace, const Context& context) {
  if (is_empty(args.shape)) return;
  if (uses_sm90(args, context)) return conv2d_sm90_forward(args, workspace, context);
  run(args, nullptr, context);
}

void conv2d_forward_statistics(const Conv2dForward& args, float* mean, float* var, void* workspace,
                               const Context& context) {
  if (is_empty(args.shape)) return;
  if (uses_sm90(args, context)) return conv2d_sm90_forward_statistics(args, mean, var, workspace, context);
  float* partials = static_cast<float*>(workspace);
  const StatisticsTiles tiles = statistics_tiles(args, partials, context);
  run(args, partials, context);
  combine_statistics(tiles, mean, var, static_cast<char*>(workspace) + partial_bytes(tiles), context);
}

}  // namespace ik::cuda
