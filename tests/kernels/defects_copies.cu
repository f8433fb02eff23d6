// Asynchronous copies: cp.async, mbarriers and TMA. The marked line is the one to be reported.
#include "cuda/launch.h"
#include "defects.h"

namespace ik::cuda {
namespace {

template <bool kDefect>
__global__ void cp_async_without_wait(Arguments a) {
  IK_SHARED(float, s, [256]);
  cp_async4(smem_u32(&s[threadIdx.x]), a.x + threadIdx.x, 4);
  cp_async_commit();
  if (!kDefect) cp_async_wait<0>();
  a.y[threadIdx.x] = s[threadIdx.x];  // reported: shared race
  cp_async_wait<0>();
}

template <bool kDefect>
__global__ void cp_async_waits_for_older_groups(Arguments a) {
  IK_SHARED(float, s, [2][256]);
  for (int i = 0; i < 2; ++i) {
    cp_async4(smem_u32(&s[i][threadIdx.x]), a.x + threadIdx.x, 4);
    cp_async_commit();
  }
  cp_async_wait<kDefect ? 1 : 0>();
  a.y[threadIdx.x] = s[1][threadIdx.x];  // reported: shared race
  cp_async_wait<0>();
}

template <bool kDefect>
__global__ void cp_async_not_committed(Arguments a) {
  IK_SHARED(float, s, [256]);
  cp_async4(smem_u32(&s[threadIdx.x]), a.x + threadIdx.x, 4);
  if (!kDefect) cp_async_commit();
  cp_async_wait<0>();
  a.y[threadIdx.x] = s[threadIdx.x];  // reported: shared race
  cp_async_commit();
  cp_async_wait<0>();
}

template <bool kDefect>
__global__ void cp_async_of_other_threads(Arguments a) {
  IK_SHARED(float, s, [256]);
  cp_async4(smem_u32(&s[threadIdx.x]), a.x + threadIdx.x, 4);
  cp_async_commit();
  cp_async_wait<0>();
  if (!kDefect) __syncthreads();
  a.y[threadIdx.x] = s[threadIdx.x ^ 32];  // reported: shared race
}

template <bool kDefect>
__global__ void cp_async_misaligned(Arguments a) {
  IK_SHARED(float4, s, [32]);
  if (threadIdx.x < 32) {
    const float* from = a.x + 4 * threadIdx.x + (kDefect ? 1 : 0);
    cp_async16(smem_u32(&s[threadIdx.x]), from, 16);  // reported: misaligned
    cp_async_commit();
    cp_async_wait<0>();
  }
  a.y[threadIdx.x] = 1;
}

template <bool kDefect>
__global__ void cp_async_left_behind(Arguments a) {  // reported without line: cp.async
  IK_SHARED(float, s, [256]);
  cp_async4(smem_u32(&s[threadIdx.x]), a.x + threadIdx.x, 4);
  cp_async_commit();
  if (!kDefect) cp_async_wait<0>();
  a.y[threadIdx.x] = 1;
}

constexpr int kBytes = 1024;

template <bool kDefect>
__global__ void copy_not_awaited(Arguments a) {
  IK_SHARED(float4, s, [64]);
  IK_SHARED(uint64_t, barrier, [1]);
  if (threadIdx.x == 0) {
    mbar_init(smem_u32(barrier), 1);
    mbar_fence_init();
    mbar_expect_tx(smem_u32(barrier), kBytes);
    bulk_load(smem_u32(s), a.x, kBytes, smem_u32(barrier));
  }
  __syncthreads();
  if (!kDefect) mbar_wait(smem_u32(barrier), 0);
  const float v = reinterpret_cast<const float*>(s)[threadIdx.x];  // reported: shared race
  a.y[threadIdx.x] = v;
  mbar_wait(smem_u32(barrier), 0);
}

template <bool kDefect>
__global__ void wrong_parity(Arguments a) {
  IK_SHARED(float4, s, [64]);
  IK_SHARED(uint64_t, barrier, [1]);
  if (threadIdx.x == 0) {
    mbar_init(smem_u32(barrier), 1);
    mbar_fence_init();
    mbar_expect_tx(smem_u32(barrier), kBytes);
    bulk_load(smem_u32(s), a.x, kBytes, smem_u32(barrier));
  }
  __syncthreads();
  mbar_wait(smem_u32(barrier), kDefect ? 1 : 0);                   // reported: deadlock
  const float v = reinterpret_cast<const float*>(s)[threadIdx.x];  // reported: shared race
  a.y[threadIdx.x] = v;
  mbar_wait(smem_u32(barrier), 0);
}

template <bool kDefect>
__global__ void too_few_bytes(Arguments a) {
  IK_SHARED(float4, s, [64]);
  IK_SHARED(uint64_t, barrier, [1]);
  if (threadIdx.x == 0) {
    mbar_init(smem_u32(barrier), 1);
    mbar_fence_init();
    mbar_expect_tx(smem_u32(barrier), kDefect ? kBytes + 16 : kBytes);
    bulk_load(smem_u32(s), a.x, kBytes, smem_u32(barrier));
  }
  __syncthreads();
  mbar_wait(smem_u32(barrier), 0);  // reported: deadlock
  a.y[threadIdx.x] = 1;
}

template <bool kDefect>
__global__ void init_not_ordered(Arguments a) {
  IK_SHARED(uint64_t, barrier, [1]);
  if (threadIdx.x == 0) {
    mbar_init(smem_u32(barrier), 256);
    mbar_fence_init();
  }
  if (!kDefect) __syncthreads();
  mbar_arrive(smem_u32(barrier));  // reported: mbarrier
  mbar_wait(smem_u32(barrier), 0);
  a.y[threadIdx.x] = 1;
}

template <bool kDefect>
__global__ void data_over_a_barrier(Arguments a) {
  IK_SHARED(uint64_t, words, [2]);
  if (threadIdx.x == 0) {
    mbar_init(smem_u32(words), 1);
    words[kDefect ? 0 : 1] = 1;  // reported: mbarrier
  }
  a.y[threadIdx.x] = 1;
}

template <bool kDefect>
__global__ void init_not_visible(Arguments a) {
  IK_SHARED(float4, s, [64]);
  IK_SHARED(uint64_t, barrier, [1]);
  if (threadIdx.x == 0) {
    mbar_init(smem_u32(barrier), 1);
    if (!kDefect) mbar_fence_init();
    mbar_expect_tx(smem_u32(barrier), kBytes);
    bulk_load(smem_u32(s), a.x, kBytes, smem_u32(barrier));  // reported: mbarrier
  }
  __syncthreads();
  mbar_wait(smem_u32(barrier), 0);
  a.y[threadIdx.x] = 1;
}

template <bool kDefect>
__global__ void too_many_arrivals(Arguments a) {
  IK_SHARED(uint64_t, barrier, [1]);
  IK_SHARED(float4, s, [64]);
  if (threadIdx.x == 0) {
    mbar_init(smem_u32(barrier), 1);
    mbar_fence_init();
    mbar_expect_tx(smem_u32(barrier), kBytes);
    if (kDefect) mbar_arrive(smem_u32(barrier));  // reported: mbarrier
    bulk_load(smem_u32(s), a.x, kBytes, smem_u32(barrier));
  }
  __syncthreads();
  if (!kDefect) mbar_wait(smem_u32(barrier), 0);
  a.y[threadIdx.x] = 1;
}

// A ring of one stage: the consumers release it, the producer fills it again.
template <bool kDefect>
__global__ void stage_released_too_early(Arguments a) {
  IK_SHARED(float4, s, [64]);
  IK_SHARED(uint64_t, full, [1]);
  IK_SHARED(uint64_t, empty, [1]);
  if (threadIdx.x == 0) {
    mbar_init(smem_u32(full), 1);
    mbar_init(smem_u32(empty), 256);
    mbar_fence_init();
  }
  __syncthreads();
  if (threadIdx.x == 256) {
    for (int i = 0; i < 3; ++i) {
      mbar_wait(smem_u32(empty), (i & 1) ^ 1);
      mbar_expect_tx(smem_u32(full), kBytes);
      bulk_load(smem_u32(s), a.x, kBytes, smem_u32(full));  // reported: shared race
    }
  } else if (threadIdx.x < 256) {
    float sum = 0;
    for (int i = 0; i < 3; ++i) {
      mbar_wait(smem_u32(full), i & 1);
      if (kDefect) mbar_arrive(smem_u32(empty));
      sum += reinterpret_cast<const float*>(s)[threadIdx.x];
      if (!kDefect) mbar_arrive(smem_u32(empty));
    }
    a.y[threadIdx.x] = sum;
  }
}

template <bool kDefect>
__global__ void store_without_fence(const __grid_constant__ TensorMap map, Arguments a) {
  IK_SHARED(float4, s, [64]);
  reinterpret_cast<float*>(&s[0])[threadIdx.x] = a.x[threadIdx.x];
  if (!kDefect) fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    tma_store_2d(&map, smem_u32(s), 0, 0);  // reported: missing proxy fence
    tma_store_commit();
    tma_store_wait<0>();
  }
}

template <bool kDefect>
__global__ void stored_from_while_overwritten(const __grid_constant__ TensorMap map, Arguments a) {
  IK_SHARED(float4, s, [64]);
  float* const values = reinterpret_cast<float*>(&s[0]);
  values[threadIdx.x] = a.x[threadIdx.x];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    tma_store_2d(&map, smem_u32(s), 0, 0);
    tma_store_commit();
    if (!kDefect) tma_store_wait_read<0>();
  }
  __syncthreads();
  values[threadIdx.x] = 0;  // reported: shared race
  if (threadIdx.x == 0) tma_store_wait<0>();
}

template <bool kDefect>
__global__ void stores_left_behind(const __grid_constant__ TensorMap map, Arguments a) {
  // reported without line: TMA store
  IK_SHARED(float4, s, [64]);
  reinterpret_cast<float*>(&s[0])[threadIdx.x] = a.x[threadIdx.x];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    tma_store_2d(&map, smem_u32(s), 0, 0);
    tma_store_commit();
    if (!kDefect) tma_store_wait_read<0>();
  }
}

TensorMap map_of_y(const Arguments& a) {
  return make_tensor_map({DType::kFloat32, a.y, {32, 8}, {32}, {32, 8}, Swizzle::kNone});
}
#define IK_STORE_DEFECT(kernel)                                                                         \
  DefectCase {                                                                                          \
    #kernel, [](bool defect, const Arguments& a, const Context& context) {                              \
      IK_LAUNCH(defect ? kernel<true> : kernel<false>, dim3(1), dim3(256), 0, context, map_of_y(a), a); \
    }                                                                                                   \
  }

}  // namespace

std::vector<DefectCase> copy_defects() {
  return {
      IK_DEFECT(cp_async_without_wait, 1, 1, 256),  IK_DEFECT(cp_async_waits_for_older_groups, 1, 1, 256),
      IK_DEFECT(cp_async_not_committed, 1, 1, 256), IK_DEFECT(cp_async_of_other_threads, 1, 1, 256),
      IK_DEFECT(cp_async_misaligned, 1, 1, 256),    IK_DEFECT(cp_async_left_behind, 1, 1, 256),
      IK_DEFECT(copy_not_awaited, 1, 1, 256),       IK_DEFECT(wrong_parity, 1, 1, 256),
      IK_DEFECT(too_few_bytes, 1, 1, 256),          IK_DEFECT(init_not_ordered, 1, 1, 256),
      IK_DEFECT(data_over_a_barrier, 1, 1, 256),    IK_DEFECT(init_not_visible, 1, 1, 256),
      IK_DEFECT(too_many_arrivals, 1, 1, 256),      IK_DEFECT(stage_released_too_early, 1, 1, 288),
      IK_STORE_DEFECT(store_without_fence),         IK_STORE_DEFECT(stored_from_while_overwritten),
      IK_STORE_DEFECT(stores_left_behind),
  };
}

}  // namespace ik::cuda
