// Barriers, warps and clusters. The marked line is the one to be reported.
#include "cuda/launch.h"
#include "defects.h"

namespace ik::cuda {
namespace {

template <bool kDefect>
__global__ void barrier_in_a_branch(Arguments a) {
  if (kDefect && threadIdx.x < 128) {
    __syncthreads();  // reported: divergent barrier
  } else {
    __syncthreads();  // reported: divergent barrier
  }
  a.y[threadIdx.x] = 1;
}

template <bool kDefect>
__global__ void threads_leave_before(Arguments a) {
  a.y[threadIdx.x] = 1;
  if (kDefect && threadIdx.x < 32) return;
  __syncthreads();  // reported: divergent barrier
}

template <bool kDefect>
__global__ void half_a_warp(Arguments a) {
  a.y[threadIdx.x] = 1;
  const bool comes = kDefect ? threadIdx.x % 32 < 16 : threadIdx.x < 128;
  if (comes) bar_sync(1, 128);  // reported: divergent barrier
}

template <bool kDefect>
__global__ void too_few_threads(Arguments a) {
  a.y[threadIdx.x] = 1;
  if (threadIdx.x < (kDefect ? 96 : 128)) bar_sync_n<1, 128>();  // reported: deadlock
}

template <bool kDefect>
__global__ void numbers_differ(Arguments a) {
  a.y[threadIdx.x] = 1;
  if (threadIdx.x < 128) {
    bar_arrive(2, 256);  // reported: divergent barrier
  } else {
    bar_sync(2, kDefect ? 192 : 256);  // reported: divergent barrier
  }
}

template <bool kDefect>
__global__ void arrival_orders_nothing_later(Arguments a) {
  IK_SHARED(float, s, [256]);
  if (threadIdx.x < 128) {
    if (!kDefect) s[threadIdx.x] = a.x[threadIdx.x];
    bar_arrive(1, 256);
    if (kDefect) s[threadIdx.x] = a.x[threadIdx.x];  // reported: shared race
    a.y[threadIdx.x] = 1;
  } else {
    bar_sync(1, 256);
    s[threadIdx.x - 128] = 1;  // reported: shared race
    a.y[threadIdx.x] = 1;
  }
}

template <bool kDefect>
__global__ void lanes_apart(Arguments a) {
  float v = a.x[threadIdx.x];
  if (kDefect && threadIdx.x % 2) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);  // reported: divergent warp
  } else {
    v += __shfl_xor_sync(0xffffffffu, v, 1);  // reported: divergent warp
  }
  a.y[threadIdx.x] = v;
}

template <bool kDefect>
__global__ void lanes_missing(Arguments a) {
  float v = a.x[threadIdx.x];
  if (!kDefect || threadIdx.x % 32 < 31) v += __shfl_down_sync(0xffffffffu, v, 1);  // reported: deadlock
  a.y[threadIdx.x] = v;
}

template <bool kDefect>
__global__ void reads_an_absent_lane(Arguments a) {
  float v = a.x[threadIdx.x];
  const unsigned mask = 0xffff;
  if (threadIdx.x % 32 < 16) v = __shfl_xor_sync(mask, v, kDefect ? 16 : 8);  // reported: shuffle
  a.y[threadIdx.x] = v;
}

template <bool kDefect>
__global__ void no_cluster_barrier(Arguments a) {
  IK_SHARED(float, s, [128]);
  s[threadIdx.x] = a.x[threadIdx.x];
  if (!kDefect) cluster_sync();
  const uint32_t other = mapa(smem_u32(&s[threadIdx.x]), cluster_ctarank() ^ 1);
  const float v = ld_cluster_f32(other);  // reported: shared race
  a.y[blockIdx.x * 128 + threadIdx.x] = v;
  cluster_sync();
}

template <bool kDefect>
__global__ void leaves_while_others_read(Arguments a) {  // reported without line: cluster exit
  IK_SHARED(float, s, [128]);
  s[threadIdx.x] = a.x[threadIdx.x];
  cluster_sync();
  const uint32_t other = mapa(smem_u32(&s[threadIdx.x]), cluster_ctarank() ^ 1);
  a.y[blockIdx.x * 128 + threadIdx.x] = ld_cluster_f32(other);
  if (!kDefect) cluster_sync();
}

}  // namespace

std::vector<DefectCase> barrier_defects() {
  return {
      IK_DEFECT(barrier_in_a_branch, 1, 1, 256),
      IK_DEFECT(threads_leave_before, 1, 1, 256),
      IK_DEFECT(half_a_warp, 1, 1, 256),
      IK_DEFECT(too_few_threads, 1, 1, 256),
      IK_DEFECT(numbers_differ, 1, 1, 256),
      IK_DEFECT(arrival_orders_nothing_later, 1, 1, 256),
      IK_DEFECT(lanes_apart, 1, 1, 256),
      IK_DEFECT(lanes_missing, 1, 1, 256),
      IK_DEFECT(reads_an_absent_lane, 1, 1, 256),
      IK_DEFECT(no_cluster_barrier, 2, 2, 128),
      IK_DEFECT(leaves_while_others_read, 2, 2, 128),
  };
}

}  // namespace ik::cuda
