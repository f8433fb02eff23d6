#include <stdexcept>

#include "common/counters.h"
#include "cuda/launch.h"
#include "cuda/separable_conv2d_args.h"
#include "cuda/separable_conv2d_kernels.h"
#include "cuda/separable_conv2d_plan.h"
#include "cuda/separable_conv2d_tiles.cuh"

namespace ik::cuda::separable {
namespace {

template <Math kMath>
using WideTile = TileConfig<kMath, 128, 256, 2, 4, 1>;
template <Math kMath>
using SquareTile = TileConfig<kMath, 128, 128, 4, 2, 1>;
template <Math kMath>
using SmallTile = TileConfig<kMath, 64, 64, 2, 2, 3>;

enum SizeIndex { kSquare, kWide, kSmall };

constexpr int64_t kNever = int64_t{1} << 30;  // clocks

template <typename Config>
TileSize size_of_tile(const ConvShape& shape, int64_t chunk_clocks, bool can_gather) {
  const TileShared<Config> shared(0, static_cast<int>(shape.R * shape.S));
  return {Config::kRows, Config::kColumns, shared.end, chunk_clocks, can_gather};
}

TilePlan plan_of(const SeparableForward& args, const Context& context) {
  const ConvShape& shape = args.shape;
  const bool can_load_halo = vectors_are_whole(args);
  const TileSize square = size_of_tile<SquareTile<Math::kBf16>>(shape, 1980, true);
  if (!is_half(args.dtype)) {
    return choose_tile<1>(shape, kRowBytes, {square}, kGroup, can_load_halo, context);
  }
  const int64_t wide_clocks = can_stage(epilogue_of(args)) ? 2360 : kNever;
  const TileSize wide = size_of_tile<WideTile<Math::kBf16>>(shape, wide_clocks, false);
  const TileSize small = size_of_tile<SmallTile<Math::kBf16>>(shape, 920, false);
  return choose_tile<3>(shape, kRowBytes, {square, wide, small}, kGroup, can_load_halo, context);
}

StripTiling tiling_of(const TilePlan& plan) {
  const Strips& strips = plan.strips;
  return {static_cast<int>(strips.width),
          static_cast<int>(strips.halo_rows),
          static_cast<int>(strips.halo_columns),
          static_cast<int>(plan.tiles),
          static_cast<int>(plan.column_tiles),
          FastDivide(strips.width),
          FastDivide(plan.column_tiles),
          FastDivide(strips.runs),
          FastDivide(strips.strips)};
}

TileArgs tile_args(const SeparableForward& args, const TilePlan& plan, float* partial, float* counts) {
  const ConvShape& shape = args.shape;
  const bool separate = args.input_activation != Activation::kNone && args.input_activation != Activation::kRelu;
  const Epilogue epilogue = epilogue_of(args);
  return {args.x.data,
          args.x.stride_n,
          static_cast<int>(args.x.stride_h),
          static_cast<int>(args.x.stride_w),
          args.packed_depthwise,
          args.packed_pointwise,
          static_cast<const float*>(args.depthwise_bias),
          static_cast<int>(shape.H),
          static_cast<int>(shape.W),
          static_cast<int>(shape.C),
          static_cast<int>(round_up(shape.C, 8)),
          static_cast<int>(shape.P()),
          static_cast<int>(shape.Q()),
          static_cast<int>(shape.pad_h),
          static_cast<int>(shape.pad_w),
          {static_cast<int>(shape.R), static_cast<int>(shape.S), static_cast<int>(shape.stride_h),
           static_cast<int>(shape.stride_w), static_cast<int>(shape.dilation_h), static_cast<int>(shape.dilation_w)},
          tiling_of(plan),
          args.input_activation,
          args.mid_activation,
          vectors_are_whole(args),
          separate,
          args.y.stride_n,
          args.y.stride_h,
          args.y.stride_w,
          args.residual.stride_n,
          args.residual.stride_h,
          args.residual.stride_w,
          epilogue,
          can_stage(epilogue),
          partial,
          counts};
}

template <typename Config, bool kGather>
void launch(const TileArgs& args, const Context& context) {
  const int halo = args.tiling.halo_rows * args.tiling.halo_columns;
  const TileShared<Config> shared(halo, args.window.R * args.window.S);
  // What a block may have is 1 KiB less than what blocks on one multiprocessor share.
  constexpr int64_t kReserved = 1024;
  const int64_t fitting = (shared_limit(context.sm) + kReserved) / (shared.end + kReserved);
  const int64_t blocks = std::min<int64_t>(Config::kBlocks, fitting) * context.multiprocessors;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(args.tiling.tiles, blocks)));
  IK_LAUNCH((tile_kernel<Config, kGather>), grid, dim3(Config::kThreads), shared.end, context, args);
}

template <Math kMath>
void launch_plan(const TilePlan& plan, const TileArgs& args, const Context& context) {
  if (plan.gathers()) return launch<SquareTile<kMath>, true>(args, context);
  if constexpr (!Format<kMath>::kIsFloat) {
    if (plan.size == kWide) return launch<WideTile<kMath>, false>(args, context);
    if (plan.size == kSmall) return launch<SmallTile<kMath>, false>(args, context);
  }
  launch<SquareTile<kMath>, false>(args, context);
}

}  // namespace

int64_t statistics_runs(const SeparableForward& args, const Context& context) {
  return args.shape.N * plan_of(args, context).strips.runs_of_image();
}

void tiles_forward(const SeparableForward& args, float* partial, float* counts, const Context& context) {
  const TilePlan plan = plan_of(args, context);
  const TileArgs kernel_args = tile_args(args, plan, partial, counts);
  switch (args.dtype) {
    case DType::kBFloat16:
      count_kernel("separable_conv2d.forward.cuda_sm80_bf16");
      return launch_plan<Math::kBf16>(plan, kernel_args, context);
    case DType::kFloat16:
      count_kernel("separable_conv2d.forward.cuda_sm80_fp16");
      return launch_plan<Math::kFp16>(plan, kernel_args, context);
    case DType::kFloat32:
      if (context.allow_tf32) {
        count_kernel("separable_conv2d.forward.cuda_sm80_tf32");
        return launch_plan<Math::kTf32>(plan, kernel_args, context);
      }
      count_kernel("separable_conv2d.forward.cuda_sm80_fp32");
      return launch_plan<Math::kFp32>(plan, kernel_args, context);
    case DType::kFloat64:
      break;
  }
  throw std::invalid_argument("float64 runs on the reference backend");
}

}  // namespace ik::cuda::separable
