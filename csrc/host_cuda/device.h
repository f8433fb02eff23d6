// What a kernel sees of CUDA when it executes on the host: index variables, barriers, shuffles, atomics and the macros
// of primitives.cuh. The rest of the runtime is declared in runtime.h.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "host_cuda/runtime.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __grid_constant__
#undef __forceinline__
#undef __noinline__
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __shared__ declare_shared_memory_with_IK_SHARED

#define IK_DEVICE inline __attribute__((always_inline))
#define IK_AT_ALONE ::ik::host_cuda::Where at = ::ik::host_cuda::Where::current()
#define IK_AT , IK_AT_ALONE
#define IK_FROM , at
#define IK_SHARED(type, name, ...)                \
  static const char name##_key = 0;               \
  typedef type name##_type __VA_ARGS__;           \
  name##_type& name = *static_cast<name##_type*>( \
      ::ik::host_cuda::static_shared(&name##_key, sizeof(name##_type), alignof(name##_type)))
#define IK_DYNAMIC_SHARED(name) \
  unsigned char* const name = static_cast<unsigned char*>(::ik::host_cuda::dynamic_shared())

#define threadIdx (::ik::host_cuda::thread_index())
#define blockIdx (::ik::host_cuda::block_index())
#define blockDim (::ik::host_cuda::block_size())
#define gridDim (::ik::host_cuda::grid_size())
#define warpSize 32

#define __syncthreads() ::ik::host_cuda::bar_sync(0, -1, ::ik::host_cuda::Where::current())

inline void __syncwarp(uint32_t mask = 0xffffffffu IK_AT) { ik::host_cuda::warp_sync(mask, at); }
template <typename T>
T __shfl_sync(uint32_t mask, T v, int lane, int width = 32 IK_AT) {
  return ik::host_cuda::shuffle(ik::host_cuda::Shuffle::kIndex, mask, v, lane, width, at);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T v, int lanes, int width = 32 IK_AT) {
  return ik::host_cuda::shuffle(ik::host_cuda::Shuffle::kXor, mask, v, lanes, width, at);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T v, unsigned delta, int width = 32 IK_AT) {
  return ik::host_cuda::shuffle(ik::host_cuda::Shuffle::kDown, mask, v, static_cast<int>(delta), width, at);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T v, unsigned delta, int width = 32 IK_AT) {
  return ik::host_cuda::shuffle(ik::host_cuda::Shuffle::kUp, mask, v, static_cast<int>(delta), width, at);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate IK_AT) { return ik::host_cuda::ballot(mask, predicate, at); }
inline int __any_sync(uint32_t mask, int predicate IK_AT) { return ik::host_cuda::ballot(mask, predicate, at) != 0; }
inline int __all_sync(uint32_t mask, int predicate IK_AT) { return ik::host_cuda::ballot(mask, !predicate, at) == 0; }

template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline uint32_t __float_as_uint(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
inline float __uint_as_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
inline int __float_as_int(float f) { return static_cast<int>(__float_as_uint(f)); }
inline float __int_as_float(int i) { return __uint_as_float(static_cast<uint32_t>(i)); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline int __popc(uint32_t u) { return __builtin_popcount(u); }
inline int __ffs(int i) { return __builtin_ffs(i); }
inline int __clz(int i) { return i == 0 ? 32 : __builtin_clz(static_cast<unsigned>(i)); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>((uint64_t{a} * b) >> 32); }
inline void __nanosleep(unsigned) {}
using std::max;
using std::min;

namespace ik::cuda {
namespace host_cuda = ::ik::host_cuda;
using TensorMap = ::ik::host_cuda::TensorMap;
}  // namespace ik::cuda
