#include "cuda/launch.h"
#include "exchanges.h"

namespace ik::cuda {
namespace {

__global__ void copy_by_widths_kernel(const float* x, float* y) {
  IK_SHARED(uint4, s, [256]);
  const uint32_t mine = smem_u32(&s[threadIdx.x]);
  const float* from = x + 4 * threadIdx.x;
  const unsigned width = threadIdx.x % 3;
  const uint4 v = width == 0 ? ldg128(from) : ldg128_ordered(from);
  if (width == 0) {
    sts128(mine, v);
  } else if (width == 1) {
    sts64(mine, make_uint2(v.x, v.y));
    sts64(mine + 8, make_uint2(v.z, v.w));
  } else {
    const float2 low = ldg64_ordered(from);
    sts32(mine, __float_as_uint(low.x));
    sts32(mine + 4, __float_as_uint(low.y));
    sts64(mine + 8, make_uint2(v.z, v.w));
  }
  const uint2 high = lds64(mine + 8);
  const uint4 back = width == 1 ? lds128(mine) : make_uint4(lds32(mine), lds32(mine + 4), high.x, high.y);
  stg128(y + 4 * threadIdx.x, back);
}

constexpr int kFilled = 1;
constexpr int kEmpty = 2;
constexpr int kRounds = 8;

__global__ void hand_over_kernel(const float* x, float* y) {
  IK_SHARED(float, s, [128]);
  const unsigned lane = threadIdx.x % 128;
  if (threadIdx.x < 128) {
    for (int round = 0; round < kRounds; ++round) {
      if (round > 0) bar_sync_n<kEmpty, 256>();
      s[lane] = x[round * 128 + lane];
      bar_arrive(kFilled, 256);
    }
  } else {
    for (int round = 0; round < kRounds; ++round) {
      bar_sync(kFilled, 256);
      y[round * 128 + lane] = s[lane ^ 1] + 1;
      if (round + 1 < kRounds) bar_arrive(kEmpty, 256);
    }
  }
}

constexpr int kTileBytes = 4 * 32 * 32 * 4;

__global__ void multicast_kernel(const __grid_constant__ TensorMap map, float* y) {
  IK_DYNAMIC_SHARED(tile);
  IK_SHARED(uint64_t, barrier, [1]);
  if (threadIdx.x == 0) {
    tma_prefetch(&map);
    mbar_init(smem_u32(barrier), 1);
    mbar_fence_init();
    mbar_expect_tx(smem_u32(barrier), kTileBytes);
  }
  cluster_sync();
  if (cluster_ctarank() == 0 && threadIdx.x == 0) {
    tma_multicast_4d(&map, smem_u32(tile), smem_u32(barrier), 3, 0, 0, 0, 0);
  }
  mbar_wait(smem_u32(barrier), 0);
  const float* const values = reinterpret_cast<const float*>(tile);
  for (unsigned i = threadIdx.x; i < kTileBytes / 4; i += blockDim.x) y[blockIdx.x * kTileBytes / 4 + i] = values[i];
}

constexpr unsigned kBlocks = 4;
constexpr unsigned kPart = 1024 / kBlocks;

__global__ void reverse_kernel(const float* x, float* y) {
  IK_SHARED(float, s, [kPart]);
  IK_SHARED(uint64_t, barrier, [1]);
  if (threadIdx.x == 0) {
    mbar_init(smem_u32(barrier), kPart);
    mbar_fence_init();
  }
  s[threadIdx.x] = x[blockIdx.x * kPart + threadIdx.x];
  cluster_sync();
  const unsigned other = kBlocks - 1 - cluster_ctarank();
  y[blockIdx.x * kPart + threadIdx.x] = ld_cluster_f32(mapa(smem_u32(&s[kPart - 1 - threadIdx.x]), other));
  if (threadIdx.x % 2) {
    mbar_arrive_cluster(mapa(smem_u32(barrier), other));
  } else {
    mbar_arrive_remote(mapa(smem_u32(barrier), other));
  }
  mbar_wait_cluster(smem_u32(barrier), 0);
}

}  // namespace

void copy_by_widths(const float* x, float* y, const Context& context) {
  IK_LAUNCH(copy_by_widths_kernel, dim3(1), dim3(256), 0, context, x, y);
}

void hand_over_at_named_barriers(const float* x, float* y, const Context& context) {
  IK_LAUNCH(hand_over_kernel, dim3(1), dim3(256), 0, context, x, y);
}

void multicast(const float* x, float* y, const Context& context) {
  const TensorMap map =
      make_tensor_map({DType::kFloat32, x, {32, 8, 4, 4}, {32, 256, 1024}, {32, 8, 4, 4}, Swizzle::kNone});
  IK_LAUNCH_CLUSTER(multicast_kernel, 2, dim3(2), dim3(128), kTileBytes, context, map, y);
}

void reverse_across_cluster(const float* x, float* y, const Context& context) {
  IK_LAUNCH_CLUSTER(reverse_kernel, kBlocks, dim3(kBlocks), dim3(kPart), 0, context, x, y);
}

}  // namespace ik::cuda
