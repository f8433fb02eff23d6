#include <algorithm>

#include "cuda/launch.h"
#include "cuda/separable_conv2d_backward_weight.cuh"
#include "cuda/separable_conv2d_backward_weight.h"
#include "cuda/separable_conv2d_backward_weight_sm90.h"
#include "cuda/storage_type.h"

namespace ik::cuda {
namespace {

constexpr int64_t kTileElements = PixelStage<bf16>::kElements;
constexpr int64_t kSplitStep = 32;      // pixels; a multiple of every stage's
constexpr int64_t kFewestPixels = 256;  // of a split: its sums are written and read again
constexpr int64_t kBlocksPerMultiprocessor = 2;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Splits {
  int64_t rows, columns;  // blocks across K and C
  int64_t pixels;         // of a split
  int64_t count;

  Splits(const PointwiseWeightGradient& args, const Context& context) {
    rows = divide_up(args.K, kTileElements);
    columns = divide_up(args.C, kTileElements);
    const int64_t all = args.N * args.P * args.Q;
    const int64_t places = std::max<int64_t>(1, kBlocksPerMultiprocessor * context.multiprocessors / (rows * columns));
    pixels = std::max(kFewestPixels, divide_up(divide_up(all, places), kSplitStep) * kSplitStep);
    count = divide_up(all, pixels);
  }
};

template <typename Product>
void run(const PointwiseWeightGradient& args, const Splits& splits, float* partial, const Context& context) {
  using T = typename Product::Type;
  WeightGradientArgs<T> kernel{};
  kernel.grid = pixel_grid(args.N, args.P, args.Q, args.grad_z);
  kernel.left = pixels_of<T>(args.grad_z);
  kernel.right = static_cast<const T*>(args.input);
  kernel.pixels = static_cast<int>(args.N * args.P * args.Q);
  kernel.K = static_cast<int>(args.K);
  kernel.C = static_cast<int>(args.C);
  kernel.pitch = static_cast<int>(args.pitch);
  kernel.split_pixels = static_cast<int>(splits.pixels);
  kernel.columns = FastDivide(splits.columns);
  kernel.tiles = FastDivide(splits.rows * splits.columns);
  kernel.partial = partial;
  const dim3 grid(static_cast<unsigned>(splits.rows * splits.columns * splits.count));
  constexpr size_t kShared = 2 * kWeightStages * PixelStage<T>::kBytes;
  if (is_one_row(args.grad_z, args.P, args.Q) && args.K % PixelStage<T>::kVectorElements == 0 &&
      is_aligned<T>(args.grad_z)) {
    IK_LAUNCH((weight_gradient_kernel<Product, true>), grid, dim3(kPixelThreads), kShared, context, kernel);
  } else {
    IK_LAUNCH((weight_gradient_kernel<Product, false>), grid, dim3(kPixelThreads), kShared, context, kernel);
  }
}

void run_products(const PointwiseWeightGradient& args, const Splits& splits, float* partial, const Context& context) {
  if (args.dtype == DType::kBFloat16) return run<Bf16Product>(args, splits, partial, context);
  if (args.dtype == DType::kFloat16) return run<Fp16Product>(args, splits, partial, context);
  if (context.allow_tf32) return run<Tf32Product>(args, splits, partial, context);
  run<Fp32Product>(args, splits, partial, context);
}

}  // namespace

size_t pointwise_weight_workspace_bytes(const PointwiseWeightGradient& args, const Context& context) {
  // Which kernel runs depends on addresses, which are not known yet.
  int64_t splits = Splits(args, context).count;
  if (context.sm == 90 && args.dtype != DType::kFloat32) {
    splits = std::max(splits, pointwise_weight_sm90_plan(args, context).splits);
  }
  return static_cast<size_t>(splits * args.K * args.pitch) * sizeof(float);
}

void pointwise_weight_gradient(const PointwiseWeightGradient& args, void* workspace, const Context& context) {
  float* partial = static_cast<float*>(workspace);
  int64_t count;
  if (pointwise_weight_sm90_unsupported(args, context)) {
    const Splits splits(args, context);
    run_products(args, splits, partial, context);
    count = splits.count;
  } else {
    const PointwiseWeightSm90Plan plan = pointwise_weight_sm90_plan(args, context);
    pointwise_weight_sm90(args, plan, partial, context);
    count = plan.splits;
  }

  const WeightSums sums{
      partial,         static_cast<int>(count), static_cast<int>(args.C), static_cast<int>(args.pitch),
      args.K * args.C, args.grad_weight};
  with_storage_type(args.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    const dim3 grid(static_cast<unsigned>(divide_up(sums.count, kWeightSumThreads)));
    IK_LAUNCH(weight_sums_kernel<T>, grid, dim3(kWeightSumThreads), 0, context, sums);
  });
}

}  // namespace ik::cuda
