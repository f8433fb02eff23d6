// Kernels for the machine's ceilings that PyTorch has none of: reads from L2, and what one launch after another costs.
#include "cuda/launch.h"

namespace ik::ceilings {
namespace {

using namespace ik::cuda;

constexpr int kThreads = 256;

// Every block reads all of `source`, starting where its number says, `rounds` times: from L2 once it is there.
__global__ void __launch_bounds__(kThreads) read_all(const uint4* source, int64_t count, int rounds, uint32_t* result) {
  const int64_t start = count / gridDim.x * blockIdx.x;
  uint32_t mixed = 0;
  for (int round = 0; round < rounds; ++round) {
    for (int64_t i = threadIdx.x; i < count; i += kThreads) {
      const int64_t wrapped = start + i < count ? start + i : start + i - count;
      const uint4 v = ldg128(source + wrapped);
      mixed ^= v.x ^ v.y ^ v.z ^ v.w;
    }
  }
  result[blockIdx.x * kThreads + threadIdx.x] = mixed;
}

// Adds one, after the kernel before it has ended.
__global__ void add_one(uint32_t* counter, bool overlapped) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (overlapped) {
    grid_dependency_launch();
    grid_dependency_wait();
  }
#endif
  if (blockIdx.x == 0 && threadIdx.x == 0) *counter += 1;
}

}  // namespace
}  // namespace ik::ceilings

extern "C" {

void ik_read_all(const void* source, int64_t bytes, int rounds, void* result, int blocks, void* stream) {
  const ik::cuda::Context context = {stream, 80, blocks, false};
  IK_LAUNCH(ik::ceilings::read_all, dim3(blocks), dim3(ik::ceilings::kThreads), 0, context,
            static_cast<const uint4*>(source), bytes / 16, rounds, static_cast<uint32_t*>(result));
}

void ik_chain(void* counter, int launches, int blocks, int overlapped, void* stream) {
  const ik::cuda::Context context = {stream, 80, blocks, false};
  for (int i = 0; i < launches; ++i) {
    if (overlapped) {
      IK_LAUNCH_OVERLAPPED(ik::ceilings::add_one, 1, dim3(blocks), dim3(128), 0, context,
                           static_cast<uint32_t*>(counter), true);
    } else {
      IK_LAUNCH(ik::ceilings::add_one, dim3(blocks), dim3(128), 0, context, static_cast<uint32_t*>(counter), false);
    }
  }
}
}
