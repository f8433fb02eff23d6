#include "common/counters.h"
#include "cuda/launch.h"
#include "cuda/separable_conv2d_args.h"
#include "cuda/separable_conv2d_kernels.h"
#include "cuda/separable_conv2d_plan.h"
#include "cuda/separable_conv2d_rows.cuh"

namespace ik::cuda::separable {
namespace {

constexpr int64_t kMostChannels = 128;
constexpr int64_t kChunkChannels = Format<Math::kBf16>::kChannels;

template <typename Config>
int64_t padded_outputs(const ConvShape& shape) {
  return round_up(shape.K, Config::kPass);
}

template <typename Config>
RowsPlan plan_of(const ConvShape& shape, const Context& context) {
  const int padded_K = static_cast<int>(padded_outputs<Config>(shape));
  return plan_rows(
      shape, {Config::kWidth, kTall, Config::shared_bytes(padded_K, 0), Config::worker_bytes(padded_K), kMostWorkers},
      context);
}

RowsPlan plan_of(const SeparableForward& args, const Context& context) {
  if (args.shape.C <= kChunkChannels) return plan_of<RowsConfig<Math::kBf16, 1>>(args.shape, context);
  return plan_of<RowsConfig<Math::kBf16, 2>>(args.shape, context);
}

template <typename Config>
void launch(const SeparableForward& args, const Context& context) {
  const ConvShape& shape = args.shape;
  const RowsPlan plan = plan_of<Config>(shape, context);
  const int padded_K = static_cast<int>(padded_outputs<Config>(shape));
  const RowsArgs kernel_args = {args.x.data,
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
                                static_cast<int>(plan.segment_rows),
                                static_cast<int>(shape.N * plan.strips * plan.segments),
                                FastDivide(plan.segments),
                                FastDivide(plan.strips),
                                padded_K,
                                args.input_activation == Activation::kRelu,
                                args.mid_activation,
                                args.y.stride_n,
                                args.y.stride_h,
                                args.y.stride_w,
                                args.residual.stride_n,
                                args.residual.stride_h,
                                args.residual.stride_w,
                                epilogue_of(args)};
  const int64_t blocks = std::min<int64_t>(context.multiprocessors, divide_up(kernel_args.items, plan.workers));
  IK_LAUNCH((rows_kernel<Config>), dim3(static_cast<unsigned>(blocks)),
            dim3(static_cast<unsigned>(plan.workers * kWorkerThreads)),
            Config::shared_bytes(padded_K, static_cast<int>(plan.workers)), context, kernel_args);
}

template <Math kMath>
void launch_chunks(const SeparableForward& args, const Context& context) {
  if (args.shape.C <= kChunkChannels) return launch<RowsConfig<kMath, 1>>(args, context);
  launch<RowsConfig<kMath, 2>>(args, context);
}

}  // namespace

bool rows_can_run(const SeparableForward& args, const Context& context) {
  const ConvShape& shape = args.shape;
  const bool window = shape.R == kTaps && shape.S == kTaps && shape.stride_h == 1 && shape.stride_w == 1 &&
                      shape.dilation_h == 1 && shape.dilation_w == 1;
  const bool activation = args.input_activation == Activation::kNone || args.input_activation == Activation::kRelu;
  return is_half(args.dtype) && window && activation && vectors_are_whole(args) && can_stage(epilogue_of(args)) &&
         shape.C <= kMostChannels && shape.K <= kMostColumns && plan_of(args, context).workers >= kFewestWorkers;
}

bool rows_pay(const SeparableForward& args, const Context& context) {
  constexpr int64_t kFewestSteps = 4;  // of a worker: over them the weights are loaded once
  const RowsPlan plan = plan_of(args, context);
  const int64_t steps = args.shape.N * plan.strips * divide_up(args.shape.P(), kTall);
  return steps >= kFewestSteps * plan.workers * context.multiprocessors;
}

void rows_forward(const SeparableForward& args, const Context& context) {
  if (args.dtype == DType::kBFloat16) {
    count_kernel("separable_conv2d.forward.cuda_sm80_rows_bf16");
    launch_chunks<Math::kBf16>(args, context);
  } else {
    count_kernel("separable_conv2d.forward.cuda_sm80_rows_fp16");
    launch_chunks<Math::kFp16>(args, context);
  }
}

}  // namespace ik::cuda::separable
