#include <algorithm>

#include "common/counters.h"
#include "cuda/copied_views.h"
#include "cuda/launch.h"
#include "cuda/separable_conv2d_backward_weight_sm90.cuh"
#include "cuda/separable_conv2d_backward_weight_sm90.h"

namespace ik::cuda {
namespace {

struct WeightLaunch {
  const TensorMap& row_map;
  const TensorMap& column_map;
  const WeightSm90Args& args;
  int64_t splits;
  const Context& context;
};

struct WeightKernel {
  int rows, columns;
  int stage_bytes;
  void (*launch)(const WeightLaunch&);
};

template <typename T, int kSlabs, int kN>
constexpr WeightKernel weight_kernel() {
  using Tile = WeightTile90<kSlabs, kN>;
  const auto launch = [](const WeightLaunch& with) {
    IK_LAUNCH((weight_gradient_sm90<T, kSlabs, kN>), dim3(static_cast<unsigned>(with.args.tiles * with.splits)),
              dim3(kRingThreads), sizeof(typename Tile::Shared), with.context, with.row_map, with.column_map,
              with.args);
  };
  return {Tile::kRows, kN, Tile::kStageBytes, launch};
}

constexpr int kKernels = 7;
template <typename T>
constexpr WeightKernel kTable[kKernels] = {
    weight_kernel<T, 1, 64>(), weight_kernel<T, 1, 128>(), weight_kernel<T, 1, 192>(), weight_kernel<T, 1, 256>(),
    weight_kernel<T, 2, 64>(), weight_kernel<T, 2, 128>(), weight_kernel<T, 2, 192>()};

const WeightKernel& kernel_at(DType dtype, int index) {
  return dtype == DType::kFloat16 ? kTable<fp16>[index] : kTable<bf16>[index];
}

int64_t pixel_count(const PointwiseWeightGradient& args) { return args.N * args.P * args.Q; }

int64_t tile_count(const PointwiseWeightGradient& args, const WeightKernel& kernel) {
  return ceil_div(args.K, kernel.rows) * ceil_div(args.C, kernel.columns);
}

// Elements from pixel to pixel. That of a single pixel may be anything: here it is what a dense tensor has.
int64_t pixel_stride(const PointwiseWeightGradient& args) {
  if (pixel_count(args) == 1) return ceil_div(args.K, kCopyElements) * kCopyElements;
  if (args.Q > 1) return args.grad_z.stride_w;
  return args.P > 1 ? args.grad_z.stride_h : args.grad_z.stride_n;
}

bool pixels_are_joined(const PointwiseWeightGradient& args) {
  const int64_t stride = pixel_stride(args);
  return (args.P == 1 || args.grad_z.stride_h == args.Q * stride) &&
         (args.N == 1 || args.grad_z.stride_n == args.P * args.Q * stride);
}

// What the blocks take: the tensor cores or the copies from L2, then writing the sums, and reading them again.
double predicted_clocks(const PointwiseWeightGradient& args, const WeightKernel& kernel,
                        const PointwiseWeightSm90Plan& plan, int multiprocessors) {
  constexpr double kL2BytesPerClock = 36;  // of one multiprocessor when all of them copy
  constexpr double kProductsPerClock = 2048;
  constexpr double kStartClocks = 1500;
  const double outputs = static_cast<double>(kernel.rows) * kernel.columns;
  const double stage =
      std::max(outputs * kWeightStagePixels / kProductsPerClock, kernel.stage_bytes / kL2BytesPerClock);
  const double stages = static_cast<double>(ceil_div(plan.split_pixels, kWeightStagePixels));
  const double sums = outputs * sizeof(float) / kL2BytesPerClock;
  const double waves = static_cast<double>(ceil_div(tile_count(args, kernel) * plan.splits, multiprocessors));
  const double all_sums = static_cast<double>(plan.splits * args.K * args.pitch) * sizeof(float);
  return waves * (kStartClocks + stages * stage + sums) + all_sums / (kL2BytesPerClock * multiprocessors);
}

TensorMap map_of(DType dtype, const void* data, int64_t channels, int64_t pixels, int64_t stride) {
  return make_tensor_map({dtype, data, {channels, pixels}, {stride}, {kSpan, kWeightStagePixels}});
}

}  // namespace

const char* pointwise_weight_sm90_unsupported(const PointwiseWeightGradient& args, const Context& context) {
  if (context.sm != 90) return "the Hopper kernel needs compute capability 9.0";
  if (args.dtype != DType::kBFloat16 && args.dtype != DType::kFloat16) return "the Hopper kernel is for 16-bit types";
  if (!pixels_are_joined(args)) return "the rows of the gradient do not follow each other";
  if (!is_copy_aligned(args.grad_z.data) || pixel_stride(args) % kCopyElements) {
    return "pixels of the gradient do not begin at multiples of 16 bytes";
  }
  return nullptr;
}

int pointwise_weight_sm90_tiles() { return kKernels; }

PointwiseWeightSm90Plan pointwise_weight_sm90_plan_of(int tile, const PointwiseWeightGradient& args,
                                                      const Context& context) {
  constexpr int64_t kFewestPixels = 256;  // of a split: its sums are written and read again
  const int64_t all = pixel_count(args);
  const int64_t tiles = tile_count(args, kernel_at(args.dtype, tile));
  const int64_t places = std::max<int64_t>(1, context.multiprocessors / tiles);
  const int64_t share = ceil_div(ceil_div(all, places), kWeightStagePixels) * kWeightStagePixels;
  const int64_t pixels = std::max(kFewestPixels, share);
  return {tile, pixels, ceil_div(all, pixels)};
}

PointwiseWeightSm90Plan pointwise_weight_sm90_plan(const PointwiseWeightGradient& args, const Context& context) {
  PointwiseWeightSm90Plan best{};
  double fewest = 0;
  for (int tile = 0; tile < kKernels; ++tile) {
    const PointwiseWeightSm90Plan plan = pointwise_weight_sm90_plan_of(tile, args, context);
    const double clocks = predicted_clocks(args, kernel_at(args.dtype, tile), plan, context.multiprocessors);
    if (tile > 0 && clocks >= fewest) continue;
    best = plan;
    fewest = clocks;
  }
  return best;
}

void pointwise_weight_sm90(const PointwiseWeightGradient& args, const PointwiseWeightSm90Plan& plan, float* partial,
                           const Context& context) {
  const WeightKernel& kernel = kernel_at(args.dtype, plan.tile);
  const int64_t pixels = pixel_count(args);
  const WeightSm90Args kernel_args = {static_cast<int>(pixels),
                                      static_cast<int>(args.K),
                                      static_cast<int>(args.C),
                                      static_cast<int>(args.pitch),
                                      static_cast<int>(ceil_div(args.C, kernel.columns)),
                                      static_cast<int>(tile_count(args, kernel)),
                                      static_cast<int>(plan.split_pixels),
                                      partial};
  kernel.launch({map_of(args.dtype, args.grad_z.data, args.K, pixels, pixel_stride(args)),
                 map_of(args.dtype, args.input, args.C, pixels, args.pitch), kernel_args, plan.splits, context});
  count_kernel(args.dtype == DType::kFloat16 ? "separable_conv2d.backward.cuda_sm90_f16"
                                             : "separable_conv2d.backward.cuda_sm90_bf16");
}

}  // namespace ik::cuda
