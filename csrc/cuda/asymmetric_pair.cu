#include <algorithm>

#include "asymmetric_pair.h"
#include "common/counters.h"
#include "conv2d_bn_act.h"
#include "cuda/asymmetric_pair.cuh"
#include "cuda/asymmetric_pair_lines.h"
#include "cuda/asymmetric_pair_sm90.h"
#include "cuda/conv2d_bn_act_sm90.h"
#include "cuda/conv2d_geometry.h"
#include "cuda/launch.h"
#include "cuda/shared_limit.h"

namespace ik::cuda {

namespace {

constexpr int64_t kWorkspaceAlignment = 256;

int64_t lines_per_tile(const PairLines& lines) { return PairTile::kRows / std::max(lines.length, lines.out_length); }

int64_t tile_count(const PairForward& args) {
  const PairLines lines(args.second);
  return divide_up(args.second.N * lines.of_image, lines_per_tile(lines));
}

int64_t channel_blocks(const PairForward& args) {
  return divide_up(args.first.K * element_bytes(args.dtype), kStepBytes);
}

size_t shared_bytes(const PairForward& args) {
  const int blocks = static_cast<int>(channel_blocks(args));
  return args.dtype == DType::kFloat32 ? PairShared<float>::bytes(blocks) : PairShared<bf16>::bytes(blocks);
}

bool is_empty(const PairForward& args) { return pixel_count(args.second) == 0 || args.second.K == 0; }

size_t intermediate_bytes(const PairForward& args) {
  const int64_t bytes = pixel_count(args.first) * args.first.K * element_bytes(args.dtype);
  return static_cast<size_t>(round_up(bytes, kWorkspaceAlignment));
}

Conv2dForward first_convolution(const PairForward& args, void* intermediate) {
  const int64_t K = args.first.K;
  const int64_t width = args.first.Q() * K;
  return {args.first,
          args.dtype,
          args.x,
          args.first_packed_weight,
          args.first_scale,
          args.first_shift,
          NhwcInput{},
          args.first_activation,
          NhwcOutput{intermediate, args.first.P() * width, width, K}};
}

Conv2dForward second_convolution(const PairForward& args, const void* intermediate) {
  const int64_t K = args.first.K;
  const int64_t width = args.first.Q() * K;
  return {args.second,
          args.dtype,
          NhwcInput{intermediate, args.first.P() * width, width, K},
          args.second_packed_weight,
          args.second_scale,
          args.second_shift,
          NhwcInput{},
          args.second_activation,
          args.y};
}

bool both_run_on_sm90(const PairForward& args, const Context& context) {
  return !conv2d_sm90_unsupported(first_convolution(args, nullptr), context) &&
         !conv2d_sm90_unsupported(second_convolution(args, nullptr), context);
}

bool runs_on_sm90(const PairForward& args, const Context& context) {
  return !asymmetric_pair_sm90_unsupported(args, context);
}

// By what Hopper's kernels are predicted to take.
bool is_faster_split_on_sm90(const PairForward& args, const Context& context) {
  if (!both_run_on_sm90(args, context)) return false;
  return conv2d_sm90_clocks(first_convolution(args, nullptr), context) +
             conv2d_sm90_clocks(second_convolution(args, nullptr), context) <
         asymmetric_pair_sm90_clocks(args, context);
}

LineGeometry line_geometry(const PairForward& args) {
  const PairLines lines(args.second);
  return {lines.vertical,
          static_cast<int>(args.second.N * lines.of_image),
          static_cast<int>(lines_per_tile(lines)),
          static_cast<int>(lines.taps),
          static_cast<int>(lines.stride),
          static_cast<int>(lines.pad),
          static_cast<int>(lines.dilation),
          FastDivide(lines.length),
          FastDivide(lines.out_length),
          FastDivide(lines.of_image)};
}

PairKernel kernel_arguments(const PairForward& args) {
  const int64_t tap_bytes = round_up(args.first.K, kChannelStep) * element_bytes(args.dtype);
  return {
      conv_geometry(args.first, args.dtype, args.x, args.first_packed_weight),
      {static_cast<const float*>(args.first_scale), static_cast<const float*>(args.first_shift), nullptr, nullptr,
       static_cast<int>(args.first.K), args.first_activation, false, false},
      line_geometry(args),
      args.second_packed_weight,
      static_cast<int>(tap_bytes / kVectorBytes),
      static_cast<int>(channel_blocks(args)),
      {static_cast<const float*>(args.second_scale), static_cast<const float*>(args.second_shift), nullptr, args.y.data,
       static_cast<int>(args.second.K), args.second_activation, false, has_octets(args.y, args.second.K, args.dtype)},
      args.y.stride_n,
      args.y.stride_h,
      args.y.stride_w};
}

template <typename Product>
void launch(const PairForward& args, const char* name, const Context& context) {
  count_kernel(name);
  IK_LAUNCH(asymmetric_pair_kernel<Product>, dim3(static_cast<unsigned>(tile_count(args))), dim3(PairTile::kThreads),
            shared_bytes(args), context, kernel_arguments(args));
}

void run_one(const PairForward& args, const Context& context) {
  switch (args.dtype) {
    case DType::kBFloat16:
      return launch<Bf16Product>(args, "asymmetric_pair.forward.cuda_sm80_bf16", context);
    case DType::kFloat16:
      return launch<Fp16Product>(args, "asymmetric_pair.forward.cuda_sm80_fp16", context);
    default:
      break;
  }
  if (context.allow_tf32) return launch<Tf32Product>(args, "asymmetric_pair.forward.cuda_sm80_tf32", context);
  launch<Fp32Product>(args, "asymmetric_pair.forward.cuda_sm80_fp32", context);
}

}  // namespace

const char* asymmetric_pair_unsupported(const PairForward& args, const Context& context) {
  const char* first = conv2d_unsupported(first_convolution(args, nullptr), context);
  return first ? first : conv2d_unsupported(second_convolution(args, nullptr), context);
}

const char* asymmetric_pair_split_reason(const PairForward& args, const Context& context) {
  if (is_empty(args)) return nullptr;
  if (runs_on_sm90(args, context)) {
    return is_faster_split_on_sm90(args, context) ? "two kernels are expected to be faster" : nullptr;
  }
  if (!has_vectors(args.x, args.first.C, args.dtype)) return "the channels of x are not read 16 bytes at a time";
  if (!is_vertical(args.second) && !is_horizontal(args.second)) return "the second window runs along both axes";
  if (lines_per_tile(PairLines(args.second)) == 0) return "lines of more than 128 pixels";
  if (static_cast<int64_t>(shared_bytes(args)) > shared_limit(context.sm)) {
    return "an intermediate of too many channels for shared memory";
  }
  // The next two are expectations, not limits.
  if (2 * tile_count(args) < context.multiprocessors) return "too few lines to occupy the device";
  if (both_run_on_sm90(args, context)) return "two kernels use Hopper's tensor cores, one does not";
  return nullptr;
}

size_t asymmetric_pair_workspace_bytes(const PairForward& args, const Context& context) {
  if (is_empty(args) || !asymmetric_pair_split_reason(args, context)) return 0;
  return intermediate_bytes(args) + std::max(conv2d_workspace_bytes(first_convolution(args, nullptr), false, context),
                                             conv2d_workspace_bytes(second_convolution(args, nullptr), false, context));
}

void asymmetric_pair_forward(const PairForward& args, void* workspace, const Context& context) {
  if (is_empty(args)) return;
  if (!asymmetric_pair_split_reason(args, context)) {
    return runs_on_sm90(args, context) ? asymmetric_pair_sm90_forward(args, context) : run_one(args, context);
  }
  void* rest = static_cast<char*>(workspace) + intermediate_bytes(args);
  conv2d_forward(first_convolution(args, workspace), rest, context);
  conv2d_forward(second_convolution(args, workspace), rest, context);
}

}  // namespace ik::cuda
