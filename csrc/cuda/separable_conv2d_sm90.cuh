// separable_conv2d on Hopper, window 3 x 3, stride 1: persistent and warp-specialised, in clusters of up to three
// blocks. The blocks of a cluster compute the same pixels and different output channels. Of the chunks of 64 channels
// each block makes every cluster-th: four producer warps take the depthwise sums of a halo and write them as operand A
// of wgmma, and bulk copies bring them to the other blocks. Two warpgroups multiply by the pointwise weights.
//
// Shared memory is the busiest beside the tensor cores, because wgmma reads all of B for every 64 rows. Clocks of one
// chunk of 728 -> 728 at 19 x 19, a tile of 192 rows by 256 channels, 1536 clocks of the tensor cores, 128 bytes a
// clock:
//
//                                     one block   of a cluster of 3
//   wgmma reads B and A                    1024                1024
//   TMA writes weights                      256                 256
//   depthwise reads and writes              504                 168
//   TMA writes halo and taps                261                  87
//   copies between blocks                     -                 260
//   of the tensor cores' clocks            1.33                1.17
//   issue slots of a scheduler             2420                1508
//
// So the cluster is what makes the depthwise part cheap enough; it also divides the traffic of the input. A block alone
// has no room for a better tile: the accumulators fill the registers (192 of them leave 32 to a consumer, so producers
// live on 56), and operand A straight from registers would need each input nine times where a strip of five rows reads
// it 1.4 times.
#pragma once
#include "cuda/separable_conv2d_sm90_depthwise.cuh"
#include "cuda/separable_conv2d_sm90_product.cuh"

namespace ik::cuda::separable_sm90 {

template <typename Tile>
IK_DEVICE void prepare(typename Tile::Shared& shared, const Args& args) {
  if (threadIdx.x == 0) {
    for (uint32_t stage = 0; stage < kStagesB; ++stage) {
      mbar_init(smem_u32(&shared.b_full[stage]), 1);
      mbar_init(smem_u32(&shared.b_empty[stage]), kConsumerWarps);
    }
    for (uint32_t stage = 0; stage < kStagesA; ++stage) {
      mbar_init(smem_u32(&shared.a_full[stage]), 1);
      mbar_init(smem_u32(&shared.a_empty[stage]), kConsumerWarps * static_cast<int>(args.cluster));
    }
    for (int team = 0; team < kTeams; ++team) mbar_init(smem_u32(&shared.input_full[team]), 1);
    mbar_fence_init();
  }
  // Rows of A that no pixel has are multiplied like the others.
  const uint32_t a = smem_u32(shared.a);
  for (uint32_t offset = threadIdx.x * 16; offset < kStagesA * Tile::kBytesA; offset += kThreads * 16) {
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
  IK_DYNAMIC_SHARED(memory);
  typename Tile::Shared& shared = *reinterpret_cast<typename Tile::Shared*>(memory);
  prepare<Tile>(shared, args);
  if (uniform(threadIdx.x / kWarpgroupThreads) == kConsumers) {
    reg_dec<Tile::kProducerRegisters>();
    Producer<T, Tile>(&x_map, &taps_map, shared, args).run();
  } else {
    reg_inc<Tile::kConsumerRegisters>();
    Consumer<T, Tile>(&weight_map, shared, args).run();
  }
  cluster_sync();  // nobody leaves while another block may still copy to it or arrive at its barriers
}

}  // namespace ik::cuda::separable_sm90
