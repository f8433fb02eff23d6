#include "common/counters.h"
#include "cuda/batch_norm_backward.cuh"
#include "cuda/storage_type.h"

namespace ik::cuda {
namespace {

int64_t pixels_of_batch(const BnActBackward& args) { return args.N * args.P * args.Q; }

bool wants_sums(const BnActBackward& args) {
  return args.mean != nullptr && args.training ? true : args.grad_gamma || args.grad_beta || args.grad_z_sum;
}

bool wants_pixels(const BnActBackward& args) { return args.grad_z.data || args.grad_residual.data; }

template <typename T>
bool fits_packets(const BnActBackward& args) {
  return args.K % (16 / static_cast<int>(sizeof(T))) == 0 && is_aligned<T>(args.grad_y) && is_aligned<T>(args.z) &&
         is_aligned<T>(args.residual) && is_aligned<T>(args.grad_z) && is_aligned<T>(args.grad_residual);
}

// The workspace: corrections [2][K], then partial [tiles][2][K].
int64_t correction_floats(int64_t K) { return 2 * K; }

template <typename T, int kCount, bool kReduce, bool kApply>
void run(const NormBackwardArgs<T>& args, int64_t tiles, const ChannelLanes& threads, const Context& context) {
  if (tiles == 0) return;
  IK_LAUNCH((norm_backward_kernel<T, kCount, kReduce, kApply>), tile_grid(tiles, threads.groups), threads.block(), 0,
            context, args);
}

template <typename T>
NormBackwardArgs<T> kernel_args(const BnActBackward& args, float* workspace) {
  NormBackwardArgs<T> out{};
  out.grid = pixel_grid(args.N, args.P, args.Q, args.grad_y, args.z, args.residual, args.grad_z, args.grad_residual);
  out.grad_y = pixels_of<T>(args.grad_y);
  out.z = pixels_of<T>(args.z);
  out.residual = pixels_of<T>(args.residual);
  out.grad_z = pixels_of<T>(args.grad_z);
  out.grad_residual = pixels_of<T>(args.grad_residual);
  out.mean = static_cast<const float*>(args.mean);
  out.rstd = static_cast<const float*>(args.rstd);
  out.gamma = static_cast<const float*>(args.gamma);
  out.beta = static_cast<const float*>(args.beta);
  out.partial = workspace + correction_floats(args.K);
  out.pixels = static_cast<int>(pixels_of_batch(args));
  out.K = static_cast<int>(args.K);
  out.activation = args.activation;
  return out;
}

void add_sums(const BnActBackward& args, const float* partial, int64_t tiles, float* corrections,
              const Context& context) {
  const NormSumsArgs sums{partial,
                          tiles,
                          args.K,
                          static_cast<double>(std::max<int64_t>(1, pixels_of_batch(args))),
                          args.mean ? static_cast<const float*>(args.rstd) : nullptr,
                          static_cast<const float*>(args.gamma),
                          corrections != nullptr,
                          corrections,
                          static_cast<float*>(args.grad_gamma),
                          static_cast<float*>(args.grad_beta),
                          static_cast<float*>(args.grad_z_sum)};
  IK_LAUNCH(norm_sums_kernel, dim3(static_cast<unsigned>(divide_up(args.K, kColumns))), dim3(kColumns, kColumnRows), 0,
            context, sums);
}

template <typename T, int kCount>
void run_backward(const BnActBackward& args, float* workspace, const Context& context) {
  const ChannelLanes threads(args.K, kCount);
  const TiledPixels tiled(pixels_of_batch(args), threads, kBackwardStep);
  NormBackwardArgs<T> kernel = kernel_args<T>(args, workspace);
  kernel.tile_pixels = static_cast<int>(tiled.tile_pixels);
  kernel.groups = threads.groups;
  const bool training = args.mean != nullptr && args.training;
  float* corrections = training ? workspace : nullptr;
  if (training || (wants_sums(args) && !wants_pixels(args))) {
    run<T, kCount, true, false>(kernel, tiled.tiles, threads, context);
    add_sums(args, kernel.partial, tiled.tiles, corrections, context);
    kernel.corrections = corrections;
    if (wants_pixels(args)) run<T, kCount, false, true>(kernel, tiled.tiles, threads, context);
  } else if (wants_sums(args)) {
    run<T, kCount, true, true>(kernel, tiled.tiles, threads, context);
    add_sums(args, kernel.partial, tiled.tiles, nullptr, context);
  } else if (wants_pixels(args)) {
    run<T, kCount, false, true>(kernel, tiled.tiles, threads, context);
  }
}

}  // namespace

size_t bn_act_backward_workspace_bytes(const BnActBackward& args) {
  int64_t tiles = 0;
  for (int count : {1, 4, 8}) {
    const TiledPixels tiled(pixels_of_batch(args), ChannelLanes(args.K, count), kBackwardStep);
    tiles = std::max(tiles, tiled.tiles);
  }
  return static_cast<size_t>(correction_floats(args.K) + tiles * 2 * args.K) * sizeof(float);
}

void bn_act_backward(const BnActBackward& args, void* workspace, const Context& context) {
  if (args.K == 0) return;
  count_kernel(name_by_dtype(args.dtype, "batch_norm.backward.cuda_bf16", "batch_norm.backward.cuda_f16",
                             "batch_norm.backward.cuda_f32"));
  with_storage_type(args.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    if (fits_packets<T>(args))
      run_backward<T, 16 / sizeof(T)>(args, static_cast<float*>(workspace), context);
    else
      run_backward<T, 1>(args, static_cast<float*>(workspace), context);
  });
}

}  // namespace ik::cuda
