// The instantiations of the Hopper separable kernel, one compile unit per dtype.
#pragma once
#include "cuda/launch.h"
#include "cuda/separable_conv2d_sm90.cuh"

namespace ik::cuda::separable_sm90 {

struct Launch {
  const TensorMap& x_map;
  const TensorMap& taps_map;
  const TensorMap& weight_map;
  const Args& args;
  const Context& context;
};

struct Kernel {
  int columns, rows_of_a, channels;  // of a tile
  int pitch;                         // pixels from row to row of the halo
  int (*resident_clusters)(int cluster, const Context& context);
  void (*launch)(const Launch&);
};

constexpr int kKernels = 3;
using Table = Kernel[kKernels];
extern const Table kernels_bf16;
extern const Table kernels_fp16;

template <typename T, typename Tile>
Kernel make_kernel() {
  const auto resident = [](int cluster, const Context& context) {
    return resident_clusters(forward<T, Tile>, cluster, dim3(kThreads), sizeof(typename Tile::Shared), context);
  };
  const auto launch = [](const Launch& with) {
    IK_LAUNCH_CLUSTER((forward<T, Tile>), static_cast<int>(with.args.cluster),
                      dim3(with.args.clusters * with.args.cluster), dim3(kThreads), sizeof(typename Tile::Shared),
                      with.context, with.x_map, with.taps_map, with.weight_map, with.args);
  };
  return {Tile::kColumns, Tile::kRows, Tile::kN, Tile::kPitch, resident, launch};
}

// Wide tiles for the middle flow (19 columns) and everything larger, with half the channels where there are no more;
// narrow ones for the exit flow's images of 10 x 10.
#define IK_SEPARABLE_SM90_TABLE(T) \
  {make_kernel<T, Tile<19, 3, 256>>(), make_kernel<T, Tile<19, 3, 128>>(), make_kernel<T, Tile<10, 2, 256>>()}

}  // namespace ik::cuda::separable_sm90
