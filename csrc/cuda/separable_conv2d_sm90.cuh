// separable_conv2d on Hopper, window 3 x 3, stride 1: persistent and warp-specialised, in clusters of up to three
// blocks. The blocks of a cluster compute the same pixels and different output channels. Of the chunks of 64 channels
// each block makes every cluster-th: four producer warps take the depthwise sums of a halo and write them as operand A
// of wgmma, and bulk copies bring them to the other blocks. Two warpgroups multiply by the pointwise weights.
//
// Shared memory is the busiest pipe, because wgmma reads all of B for every 64 rows; docs/separable_conv2d_sm90.md has
// the counts that the shapes of the tiles follow from.
#pragma once
#include "cuda/separable_conv2d_sm90_depthwise.cuh"
#include "cuda/separable_conv2d_sm90_product.cuh"

namespace ik::cuda::separable_sm90 {

template <typename Tile>
IK_DEVICE void prepare(typename Tile::Shared& shared, const Args& args) {
  if (threadIdx.x == 0) {
    Ring<Tile::kStagesB>(shared.b_ring).init(1, kConsumerWarps);
    for (int stage = 0; stage < kStagesA; ++stage) {
      mbar_init(smem_u32(&shared.a_full[stage]), 1);
      mbar_init(smem_u32(&shared.a_empty[stage]), kConsumerWarps * args.cluster);
    }
    for (int team = 0; team < kTeams; ++team) mbar_init(smem_u32(&shared.input_full[team]), 1);
    mbar_fence_init();
  }
  // Rows of A that no pixel has are multiplied like the others.
  const uint32_t a = smem_u32(shared.a);
  for (int offset = threadIdx.x * 16; offset < kStagesA * Tile::kBytesA; offset += kThreads * 16) {
    sts128(a + offset, make_uint4(0, 0, 0, 0));
  }
  fence_proxy_async();
  __syncthreads();
  cluster_sync();
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(kThreads, 1)
    forward(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap taps_map,
            const __grid_constant__ TensorMap weight_map, const __grid_constant__ Args args) {
  constexpr int kProducerRegisters = 80;
  constexpr int kConsumerRegisters = 216;
  IK_DYNAMIC_SHARED(memory);
  typename Tile::Shared& shared = *reinterpret_cast<typename Tile::Shared*>(memory);
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kWarpgroupThreads, 0);
  prepare<Tile>(shared, args);
  if (warpgroup == kConsumers) {
    reg_dec<kProducerRegisters>();
    Producer<T, Tile>(&x_map, &taps_map, shared, args).run();
  } else {
    reg_inc<kConsumerRegisters>();
    Consumer<T, Tile>(&weight_map, shared, args, warpgroup).run();
  }
  cluster_sync();  // nobody leaves while another block may still copy to it or arrive at its barriers
}

}  // namespace ik::cuda::separable_sm90
