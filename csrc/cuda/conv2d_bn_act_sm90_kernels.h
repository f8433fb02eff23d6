// The instantiations of the Hopper kernel, one compile unit per dtype.
#pragma once
#include "cuda/conv2d_bn_act_sm90.cuh"
#include "cuda/launch.h"

namespace ik::cuda {

struct ConvSm90Launch {
  const TensorMap& x_map;
  const TensorMap& weight_map;
  const ConvSm90Args& args;
  int blocks;
  const Context& context;
};

struct ConvSm90Kernel {
  int rows, columns;
  int stage_bytes;
  bool statistics;
  void (*launch)(const ConvSm90Launch&);
};

constexpr int kConvSm90Kernels = 12;
using ConvSm90Table = ConvSm90Kernel[kConvSm90Kernels];
extern const ConvSm90Table conv2d_sm90_bf16;
extern const ConvSm90Table conv2d_sm90_fp16;

template <typename T, int kSlabs, int kN>
ConvSm90Kernel conv2d_sm90_kernel() {
  using Tile = ConvTile<kSlabs, kN>;
  const auto launch = [](const ConvSm90Launch& with) {
    IK_LAUNCH((conv2d_sm90<T, kSlabs, kN>), dim3(with.blocks), dim3(kRingThreads), sizeof(typename Tile::Shared),
              with.context, with.x_map, with.weight_map, with.args);
  };
  return {Tile::kRows, kN, Tile::kStageBytes, Tile::kStatistics, launch};
}

// Widths that divide the channel counts of the networks, and twice the rows where the registers allow: that is what
// lowers the traffic from L2.
#define IK_CONV2D_SM90_TABLE(T)                                                                       \
  {conv2d_sm90_kernel<T, 1, 64>(),  conv2d_sm90_kernel<T, 1, 96>(),  conv2d_sm90_kernel<T, 1, 128>(), \
   conv2d_sm90_kernel<T, 1, 160>(), conv2d_sm90_kernel<T, 1, 192>(), conv2d_sm90_kernel<T, 1, 224>(), \
   conv2d_sm90_kernel<T, 1, 256>(), conv2d_sm90_kernel<T, 2, 64>(),  conv2d_sm90_kernel<T, 2, 96>(),  \
   conv2d_sm90_kernel<T, 2, 128>(), conv2d_sm90_kernel<T, 2, 160>(), conv2d_sm90_kernel<T, 2, 192>()}

}  // namespace ik::cuda
