// A ring of shared-memory stages between warps that fill them and warps that read them. A stage is full when
// its producers have arrived and the bytes they announced have come by TMA; it is empty when all of its consumers have
// released it. Both sides walk the ring with a RingPosition of their own.
#pragma once
#include "cuda/primitives.cuh"

namespace ik::cuda {

// In shared memory.
template <int kStages>
struct RingBarriers {
  alignas(8) uint64_t full[kStages];
  alignas(8) uint64_t empty[kStages];
};

template <int kStages>
struct RingPosition {
  int stage = 0;
  int parity = 0;  // of the round through the ring

  IK_DEVICE void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

template <int kStages>
class Ring {
 public:
  IK_DEVICE explicit Ring(RingBarriers<kStages>& barriers)
      : full_(smem_u32(barriers.full)), empty_(smem_u32(barriers.empty)) {}

  // By one thread; a barrier of the block has to follow.
  IK_DEVICE void init(int producers, int consumers) const {
    for (int stage = 0; stage < kStages; ++stage) {
      mbar_init(full(stage), producers);
      mbar_init(empty(stage), consumers);
    }
    mbar_fence_init();
  }

  // The barrier that a stage's copies complete on.
  IK_DEVICE uint32_t full(int stage) const { return full_ + stage * kBarrierBytes; }

  // A fresh ring is empty: the first round does not wait.
  IK_DEVICE void wait_empty(const RingPosition<kStages>& position IK_AT) const {
    mbar_wait(empty(position.stage), position.parity ^ 1 IK_FROM);
  }
  IK_DEVICE void wait_full(const RingPosition<kStages>& position IK_AT) const {
    mbar_wait(full(position.stage), position.parity IK_FROM);
  }
  IK_DEVICE void release(int stage IK_AT) const { mbar_arrive(empty(stage) IK_FROM); }

 private:
  static constexpr int kBarrierBytes = 8;
  IK_DEVICE uint32_t empty(int stage) const { return empty_ + stage * kBarrierBytes; }

  uint32_t full_;
  uint32_t empty_;
};

}  // namespace ik::cuda
