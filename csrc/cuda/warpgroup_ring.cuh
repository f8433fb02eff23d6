// A persistent product of warpgroups: one warp's thread copies stages into a ring, the others multiply them with wgmma.
#pragma once
#include "cuda/ring.cuh"

namespace ik::cuda {

constexpr int kRingConsumers = 2;  // warpgroups that multiply; behind them is the one that copies
constexpr int kRingThreads = 128 * (kRingConsumers + 1);

// The same in all lanes, and known to be so.
IK_DEVICE int warpgroup_index() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 128), 0); }

// Runs multiply(stage, whether it adds to what is there), which commits one group, for every stage of a product; then
// the sums are there, and the stages released.
template <int kStages, typename Multiply>
IK_DEVICE void multiply_stages(const Ring<kStages>& ring, RingPosition<kStages>& position, int stages,
                               Multiply multiply) {
  const bool leader = threadIdx.x % 32 == 0;
  int previous = 0;
  // gate: product warps=8
  for (int i = 0; i < stages; ++i) {
    ring.wait_full(position);
    multiply(position.stage, i > 0);
    if (i > 0) {
      wgmma_wait<1>();
      if (leader) ring.release(previous);
    }
    previous = position.stage;
    position.advance();
  }
  wgmma_wait<0>();
  if (leader) ring.release(previous);
}

// By one thread; a barrier of the block has to follow.
template <int kStages>
IK_DEVICE void init_ring(RingBarriers<kStages>& barriers) {
  constexpr int kWarps = 4 * kRingConsumers;
  Ring<kStages>(barriers).init(1, kWarps);
}

// copy() by one thread of the last warpgroup, multiply(warpgroup) by the others, among which it shares out registers.
template <typename Copy, typename Multiply>
IK_DEVICE void split_warpgroups(Copy copy, Multiply multiply) {
  constexpr int kProducerRegisters = 24;
  constexpr int kConsumerRegisters = 240;
  const int warpgroup = warpgroup_index();
  if (warpgroup == kRingConsumers) {
    reg_dec<kProducerRegisters>();
    // elect_one tells the compiler that one thread copies: under any other condition each copy becomes a loop.
    if (threadIdx.x / 32 == 4 * kRingConsumers && elect_one()) copy();
  } else {
    reg_inc<kConsumerRegisters>();
    multiply(warpgroup);
  }
}

}  // namespace ik::cuda
