#include "common/counters.h"
#include "cuda/batch_norm.cuh"
#include "cuda/storage_type.h"

namespace ik::cuda {
namespace {

constexpr int64_t kSection = 1024;  // tiles that a block of combine_statistics_kernel adds up

TileCounts counts_of(const StatisticsTiles& tiles) {
  return {tiles.N,
          tiles.P,
          tiles.Q,
          tiles.tile_n,
          tiles.tile_p,
          tiles.tile_q,
          divide_up(tiles.P, tiles.tile_p),
          divide_up(tiles.Q, tiles.tile_q),
          tiles.counts};
}

int64_t number_of_tiles(const StatisticsTiles& tiles) {
  if (tiles.tiles != 0) return tiles.tiles;
  const TileCounts counts = counts_of(tiles);
  return divide_up(tiles.N, tiles.tile_n) * counts.tiles_p * counts.tiles_q;
}

void count_forward(DType dtype) {
  count_kernel(name_by_dtype(dtype, "batch_norm.forward.cuda_bf16", "batch_norm.forward.cuda_f16",
                             "batch_norm.forward.cuda_f32"));
}

StatisticsTiles statistics_tiles(int64_t pixels, int64_t K, int count, const float* partial) {
  const TiledPixels tiled(pixels, ChannelLanes(K, count), kStatisticsPixels);
  return {partial, 1, 1, pixels, K, 1, 1, tiled.tile_pixels};
}

// A thread takes one channel, 4 or 8 of them: which one also depends on the tensor's address.
template <typename F>
size_t most_bytes(const F& bytes_of) {
  size_t most = 0;
  for (int count : {1, 4, 8}) most = std::max(most, bytes_of(count));
  return most;
}

size_t partial_bytes(const StatisticsTiles& tiles) {
  return static_cast<size_t>(divide_up(number_of_tiles(tiles) * 2 * tiles.K, 2)) * 2 * sizeof(float);
}

template <typename T, int kCount>
void run_statistics(const NhwcInput& z, const PixelGrid& grid, const StatisticsTiles& tiles, float* partial,
                    const Context& context) {
  const ChannelLanes threads(tiles.K, kCount);
  const StatisticsArgs<T> args{grid,
                               pixels_of<T>(z),
                               static_cast<int>(tiles.Q),
                               static_cast<int>(tiles.K),
                               static_cast<int>(tiles.tile_q),
                               threads.groups,
                               partial};
  IK_LAUNCH((statistics_kernel<T, kCount>), tile_grid(number_of_tiles(tiles), threads.groups), threads.block(), 0,
            context, args);
}

template <typename T, int kCount>
void run_scale_shift_act(const ScaleShiftAct& args, const Context& context) {
  const ChannelLanes threads(args.K, kCount);
  const int64_t pixels = args.N * args.P * args.Q;
  const int64_t tiles = divide_up(pixels, static_cast<int64_t>(threads.rows()) * kApplyPixels * kApplyRounds);
  const ScaleShiftArgs<T> kernel_args{pixel_grid(args.N, args.P, args.Q, args.z, args.residual, args.y),
                                      pixels_of<T>(args.z),
                                      pixels_of<T>(args.residual),
                                      pixels_of<T>(args.y),
                                      static_cast<const float*>(args.scale),
                                      static_cast<const float*>(args.shift),
                                      static_cast<int>(pixels),
                                      static_cast<int>(args.K),
                                      threads.groups,
                                      args.activation};
  IK_LAUNCH((scale_shift_act_kernel<T, kCount>), tile_grid(tiles, threads.groups), threads.block(), 0, context,
            kernel_args);
}

}  // namespace

void fold_batch_norm(int64_t K, const BatchNormParameters& given, double eps, const BatchNormVectors& wanted,
                     const Context& context) {
  if (K == 0) return;
  const FoldArgs args{K, given, eps, wanted};
  IK_LAUNCH(fold_batch_norm_kernel, dim3(static_cast<unsigned>(divide_up(K, kFoldThreads))), dim3(kFoldThreads), 0,
            context, args);
}

size_t combine_statistics_workspace_bytes(const StatisticsTiles& tiles) {
  const int64_t sections = divide_up(number_of_tiles(tiles), kSection);
  return sections > 1 ? static_cast<size_t>(sections * 2 * tiles.K) * sizeof(double) : 0;
}

void combine_statistics(const StatisticsTiles& tiles, float* mean, float* var, void* workspace,
                        const Context& context) {
  const int64_t count = number_of_tiles(tiles);
  if (count == 0 || tiles.K == 0) return;
  const CombineArgs args{tiles.partial,
                         counts_of(tiles),
                         count,
                         tiles.K,
                         kSection,
                         static_cast<double>(tiles.N * tiles.P * tiles.Q),
                         static_cast<double*>(workspace),
                         mean,
                         var};
  const dim3 block(kColumns, kColumnRows);
  const unsigned columns = static_cast<unsigned>(divide_up(tiles.K, kColumns));
  const int64_t sections = divide_up(count, kSection);
  IK_LAUNCH(combine_statistics_kernel, dim3(columns, static_cast<unsigned>(sections)), block, 0, context, args);
  if (sections > 1) IK_LAUNCH(combine_sections_kernel, dim3(columns), block, 0, context, args, sections);
}

size_t batch_statistics_workspace_bytes(int64_t N, int64_t P, int64_t Q, int64_t K) {
  return most_bytes([&](int count) {
    const StatisticsTiles tiles = statistics_tiles(N * P * Q, K, count, nullptr);
    return partial_bytes(tiles) + combine_statistics_workspace_bytes(tiles);
  });
}

void batch_statistics(int64_t N, int64_t P, int64_t Q, int64_t K, DType dtype, const NhwcInput& z, float* mean,
                      float* var, void* workspace, const Context& context) {
  if (N * P * Q == 0 || K == 0) return;
  with_storage_type(dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    constexpr int kPacket = 16 / sizeof(T);
    float* partial = static_cast<float*>(workspace);
    const bool packets = K % kPacket == 0 && is_aligned<T>(z);
    const StatisticsTiles tiles = statistics_tiles(N * P * Q, K, packets ? kPacket : 1, partial);
    const PixelGrid grid = pixel_grid(N, P, Q, z);
    count_forward(dtype);
    if (packets)
      run_statistics<T, kPacket>(z, grid, tiles, partial, context);
    else
      run_statistics<T, 1>(z, grid, tiles, partial, context);
    combine_statistics(tiles, mean, var, static_cast<char*>(workspace) + partial_bytes(tiles), context);
  });
}

void scale_shift_act(const ScaleShiftAct& args, const Context& context) {
  if (args.N * args.P * args.Q == 0 || args.K == 0) return;
  with_storage_type(args.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    constexpr int kPacket = 16 / sizeof(T);
    count_forward(args.dtype);
    if (args.K % kPacket == 0 && is_aligned<T>(args.z) && is_aligned<T>(args.residual) && is_aligned<T>(args.y))
      run_scale_shift_act<T, kPacket>(args, context);
    else
      run_scale_shift_act<T, 1>(args, context);
  });
}

}  // namespace ik::cuda
