// Every instruction that CUDA C++ has no name for: with wgmma.cuh the only inline PTX. A primitive has a body for the
// device (IK_PTX) and one for execution on the host (IK_HOST, csrc/host_cuda). Shared memory is addressed by the 32-bit
// addresses of smem_u32. IK_AT hands the caller's source line to the host's reports.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define IK_DEVICE __device__ __forceinline__
// IK_SHARED(float, sums, [4][32]): static shared memory.
#define IK_SHARED(type, name, ...) __shared__ type name __VA_ARGS__
// The block's dynamic shared memory as bytes, aligned to the longest swizzle pattern.
#define IK_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define IK_PTX(...) asm volatile(__VA_ARGS__)
#define IK_HOST(...)
#define IK_AT
#define IK_AT_ALONE
#define IK_FROM
namespace ik::cuda {
using TensorMap = CUtensorMap;
}
#else
#include "host_cuda/device.h"

#define IK_PTX(...)
#define IK_HOST(...) __VA_ARGS__
#endif

namespace ik::cuda {

using bf16 = __nv_bfloat16;
using fp16 = __half;

enum class Swizzle : int { kNone, k32, k64, k128 };

// ---- addresses and plain accesses ----

IK_DEVICE uint32_t smem_u32(const void* shared IK_AT) {
#ifdef __CUDACC__
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
#else
  return host_cuda::shared_address(shared, at);
#endif
}

IK_DEVICE uint32_t lds32(uint32_t address IK_AT) {
  uint32_t v;
  IK_PTX("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  IK_HOST(host_cuda::load_shared(&v, address, 4, at));
  return v;
}
IK_DEVICE uint2 lds64(uint32_t address IK_AT) {
  uint2 v;
  IK_PTX("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
  IK_HOST(host_cuda::load_shared(&v, address, 8, at));
  return v;
}
IK_DEVICE uint4 lds128(uint32_t address IK_AT) {
  uint4 v;
  IK_PTX("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  IK_HOST(host_cuda::load_shared(&v, address, 16, at));
  return v;
}
IK_DEVICE void sts32(uint32_t address, uint32_t v IK_AT) {
  IK_PTX("st.shared.u32 [%0], %1;" : : "r"(address), "r"(v) : "memory");
  IK_HOST(host_cuda::store_shared(address, &v, 4, at));
}
IK_DEVICE void sts64(uint32_t address, uint2 v IK_AT) {
  IK_PTX("st.shared.v2.u32 [%0], {%1, %2};" : : "r"(address), "r"(v.x), "r"(v.y) : "memory");
  IK_HOST(host_cuda::store_shared(address, &v, 8, at));
}
IK_DEVICE void sts128(uint32_t address, uint4 v IK_AT) {
  IK_PTX("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" : : "r"(address), "r"(v.x), "r"(v.y), "r"(v.z),
         "r"(v.w) : "memory");
  IK_HOST(host_cuda::store_shared(address, &v, 16, at));
}

// Read-only data: through the non-coherent path, may be moved freely by the compiler.
IK_DEVICE uint4 ldg128(const void* global IK_AT) {
  uint4 v;
#ifdef __CUDACC__
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(global));
#else
  host_cuda::load_global(&v, global, 16, at);
#endif
  return v;
}
// The same where `wanted`, else zeros: no branch, so that many loads can be on their way.
IK_DEVICE uint4 ldg128_or_zero(const void* global, bool wanted IK_AT) {
  uint4 v;
#ifdef __CUDACC__
  asm("{\n.reg .pred p;\nsetp.ne.s32 p, %5, 0;\nmov.u32 %0, 0;\nmov.u32 %1, 0;\nmov.u32 %2, 0;\nmov.u32 %3, 0;\n"
      "@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(global), "r"(static_cast<int>(wanted)));
#else
  v = make_uint4(0, 0, 0, 0);
  if (wanted) host_cuda::load_global(&v, global, 16, at);
#endif
  return v;
}
// Not read-only, so that they stay behind the stores before them: loads hoisted out of an epilogue cost registers.
IK_DEVICE float2 ldg64_ordered(const float* global IK_AT) {
  float2 v;
  IK_PTX("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(global) : "memory");
  IK_HOST(host_cuda::load_global(&v, global, 8, at));
  return v;
}
IK_DEVICE uint4 ldg128_ordered(const void* global IK_AT) {
  uint4 v;
  IK_PTX("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z),
         "=r"(v.w) : "l"(global) : "memory");
  IK_HOST(host_cuda::load_global(&v, global, 16, at));
  return v;
}
IK_DEVICE void stg128(void* global, uint4 v IK_AT) {
  IK_PTX("st.global.v4.u32 [%0], {%1, %2, %3, %4};" : : "l"(global), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
  IK_HOST(host_cuda::store_global(global, &v, 16, at));
}

// The same value, by way of an exchange of each lane with itself that the assembler does not see through: what is
// computed from it is computed anew, where keeping it would cost registers. All lanes of the warp take part.
IK_DEVICE uint32_t recomputed(uint32_t value) {
  IK_PTX("shfl.sync.bfly.b32 %0, %0, 0, 31, 0xffffffff;" : "+r"(value));
  return value;
}

// ---- pairs of 16-bit numbers in one register ----

IK_DEVICE uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}
IK_DEVICE uint32_t pack_fp16(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}
IK_DEVICE float2 unpack_bf16(uint32_t bits) {
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}
IK_DEVICE float2 unpack_fp16(uint32_t bits) {
  __half2 pair;
  memcpy(&pair, &bits, 4);
  return __half22float2(pair);
}

// The larger and the smaller one, a NaN stays NaN.
IK_DEVICE uint32_t bf2_max(uint32_t a, uint32_t b) {
  uint32_t r;
  IK_PTX("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  IK_HOST(const float2 x = unpack_bf16(a); const float2 y = unpack_bf16(b);
          r = pack_bf16(x.x < y.x || y.x != y.x ? y.x : x.x, x.y < y.y || y.y != y.y ? y.y : x.y));
  return r;
}
IK_DEVICE uint32_t h2_max(uint32_t a, uint32_t b) {
  uint32_t r;
  IK_PTX("max.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  IK_HOST(const float2 x = unpack_fp16(a); const float2 y = unpack_fp16(b);
          r = pack_fp16(x.x < y.x || y.x != y.x ? y.x : x.x, x.y < y.y || y.y != y.y ? y.y : x.y));
  return r;
}
IK_DEVICE uint32_t bf2_min(uint32_t a, uint32_t b) {
  uint32_t r;
  IK_PTX("min.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  IK_HOST(const float2 x = unpack_bf16(a); const float2 y = unpack_bf16(b);
          r = pack_bf16(x.x > y.x || y.x != y.x ? y.x : x.x, x.y > y.y || y.y != y.y ? y.y : x.y));
  return r;
}
IK_DEVICE uint32_t h2_min(uint32_t a, uint32_t b) {
  uint32_t r;
  IK_PTX("min.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  IK_HOST(const float2 x = unpack_fp16(a); const float2 y = unpack_fp16(b);
          r = pack_fp16(x.x > y.x || y.x != y.x ? y.x : x.x, x.y > y.y || y.y != y.y ? y.y : x.y));
  return r;
}

// The same by type: Pair<bf16>::pack(low, high).
template <typename T>
struct Pair;
template <>
struct Pair<bf16> {
  static IK_DEVICE uint32_t pack(float low, float high) { return pack_bf16(low, high); }
  static IK_DEVICE float2 unpack(uint32_t bits) { return unpack_bf16(bits); }
  static IK_DEVICE uint32_t max(uint32_t a, uint32_t b) { return bf2_max(a, b); }
  static IK_DEVICE uint32_t min(uint32_t a, uint32_t b) { return bf2_min(a, b); }
};
template <>
struct Pair<fp16> {
  static IK_DEVICE uint32_t pack(float low, float high) { return pack_fp16(low, high); }
  static IK_DEVICE float2 unpack(uint32_t bits) { return unpack_fp16(bits); }
  static IK_DEVICE uint32_t max(uint32_t a, uint32_t b) { return h2_max(a, b); }
  static IK_DEVICE uint32_t min(uint32_t a, uint32_t b) { return h2_min(a, b); }
};

// max(x, 0), a NaN stays NaN.
IK_DEVICE uint32_t bf2_max0(uint32_t a) {
  uint32_t r;
  IK_PTX("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(0u));
  IK_HOST(const float2 x = unpack_bf16(a); r = pack_bf16(x.x < 0 ? 0 : x.x, x.y < 0 ? 0 : x.y));
  return r;
}
IK_DEVICE uint32_t h2_max0(uint32_t a) {
  uint32_t r;
  IK_PTX("max.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(0u));
  IK_HOST(const float2 x = unpack_fp16(a); r = pack_fp16(x.x < 0 ? 0 : x.x, x.y < 0 ? 0 : x.y));
  return r;
}
IK_DEVICE uint32_t bf2_fma(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  IK_PTX("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  IK_HOST(r = host_cuda::fma_bf16x2(a, b, c));
  return r;
}
IK_DEVICE uint32_t h2_fma(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  IK_PTX("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  IK_HOST(r = host_cuda::fma_fp16x2(a, b, c));
  return r;
}
// The bits of a float rounded to TF32, to nearest with ties away from zero.
IK_DEVICE uint32_t to_tf32(float v) {
  uint32_t r;
  IK_PTX("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(v));
  IK_HOST(r = host_cuda::round_to_tf32(v));
  return r;
}

// ---- warps ----

// True in one lane of a converged warp.
IK_DEVICE bool elect_one(IK_AT_ALONE) {
  uint32_t elected;
  IK_PTX("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
  IK_HOST(elected = host_cuda::elect(at));
  return elected != 0;
}

// Matrices of 8 x 8 16-bit elements: lane 8 i + j gives the address of row j of matrix i; lane t receives columns
// 2 (t % 4) and the next of row t / 4, after .trans of the transpose.
IK_DEVICE void ldmatrix_x2(uint32_t (&r)[2], uint32_t row IK_AT) {
  IK_PTX("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(row) : "memory");
  IK_HOST(host_cuda::ldmatrix(r, 2, false, row, at));
}
IK_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t row IK_AT) {
  IK_PTX("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
         "=r"(r[3]) : "r"(row) : "memory");
  IK_HOST(host_cuda::ldmatrix(r, 4, false, row, at));
}
IK_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row IK_AT) {
  IK_PTX("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]),
         "=r"(r[1]) : "r"(row) : "memory");
  IK_HOST(host_cuda::ldmatrix(r, 2, true, row, at));
}
IK_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row IK_AT) {
  IK_PTX("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
         "=r"(r[3]) : "r"(row) : "memory");
  IK_HOST(host_cuda::ldmatrix(r, 4, true, row, at));
}
// sm_90
IK_DEVICE void stmatrix_x2(uint32_t row, const uint32_t (&r)[2] IK_AT) {
  IK_PTX("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" : : "r"(row), "r"(r[0]), "r"(r[1]) : "memory");
  IK_HOST(host_cuda::stmatrix(row, r, 2, false, at));
}
IK_DEVICE void stmatrix_x4(uint32_t row, const uint32_t (&r)[4] IK_AT) {
  IK_PTX("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" : : "r"(row), "r"(r[0]), "r"(r[1]),
         "r"(r[2]), "r"(r[3]) : "memory");
  IK_HOST(host_cuda::stmatrix(row, r, 4, false, at));
}
IK_DEVICE void stmatrix_x4_trans(uint32_t row, const uint32_t (&r)[4] IK_AT) {
  IK_PTX("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" : : "r"(row), "r"(r[0]), "r"(r[1]),
         "r"(r[2]), "r"(r[3]) : "memory");
  IK_HOST(host_cuda::stmatrix(row, r, 4, true, at));
}

// d += a b, float accumulators: a row-major m16 x k16 (TF32: k8), b column-major k x n8.
IK_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] IK_AT) {
  IK_PTX(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};" : "+f"(d[0]),
      "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  IK_HOST(host_cuda::mma(d, a, b, host_cuda::Operand::kBf16, at));
}
IK_DEVICE void mma_fp16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] IK_AT) {
  IK_PTX(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};" : "+f"(d[0]),
      "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  IK_HOST(host_cuda::mma(d, a, b, host_cuda::Operand::kFp16, at));
}
IK_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] IK_AT) {
  IK_PTX(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};" : "+f"(d[0]),
      "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  IK_HOST(host_cuda::mma(d, a, b, host_cuda::Operand::kTf32, at));
}

// ---- named barriers: ID 0 is __syncthreads ----

template <int ID, int kThreads>
IK_DEVICE void bar_sync_n(IK_AT_ALONE) {
  IK_PTX("bar.sync %0, %1;" : : "n"(ID), "n"(kThreads) : "memory");
  IK_HOST(host_cuda::bar_sync(ID, kThreads, at));
}
IK_DEVICE void bar_sync(int id, int threads IK_AT) {
  IK_PTX("bar.sync %0, %1;" : : "r"(id), "r"(threads) : "memory");
  IK_HOST(host_cuda::bar_sync(id, threads, at));
}
IK_DEVICE void bar_arrive(int id, int threads IK_AT) {
  IK_PTX("bar.arrive %0, %1;" : : "r"(id), "r"(threads) : "memory");
  IK_HOST(host_cuda::bar_arrive(id, threads, at));
}

// ---- cp.async: `bytes` are copied, the rest of the 4, 8 or 16 is zero ----

IK_DEVICE void cp_async4(uint32_t shared, const void* global, int bytes IK_AT) {
  IK_PTX("cp.async.ca.shared.global [%0], [%1], 4, %2;" : : "r"(shared), "l"(global), "r"(bytes) : "memory");
  IK_HOST(host_cuda::cp_async(shared, global, 4, bytes, at));
}
IK_DEVICE void cp_async8(uint32_t shared, const void* global, int bytes IK_AT) {
  IK_PTX("cp.async.ca.shared.global [%0], [%1], 8, %2;" : : "r"(shared), "l"(global), "r"(bytes) : "memory");
  IK_HOST(host_cuda::cp_async(shared, global, 8, bytes, at));
}
IK_DEVICE void cp_async16(uint32_t shared, const void* global, int bytes IK_AT) {
  IK_PTX("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(shared), "l"(global), "r"(bytes) : "memory");
  IK_HOST(host_cuda::cp_async(shared, global, 16, bytes, at));
}
IK_DEVICE void cp_async_commit(IK_AT_ALONE) {
  IK_PTX("cp.async.commit_group;" : : : "memory");
  IK_HOST(host_cuda::cp_async_commit());
}
// Until at most kPending of this thread's groups are in flight.
template <int kPending>
IK_DEVICE void cp_async_wait(IK_AT_ALONE) {
  IK_PTX("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
  IK_HOST(host_cuda::cp_async_wait(kPending));
}

// ---- mbarriers (the arrivals of sm_80; transactions and waits of sm_90) ----

IK_DEVICE void mbar_init(uint32_t barrier, int arrivals IK_AT) {
  IK_PTX("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(barrier), "r"(arrivals) : "memory");
  IK_HOST(host_cuda::mbar_init(barrier, arrivals, at));
}
// Makes the inits of this thread visible to the async proxy and the cluster; a block barrier must follow.
IK_DEVICE void mbar_fence_init(IK_AT_ALONE) {
  IK_PTX("fence.mbarrier_init.release.cluster;" : : : "memory");
  IK_HOST(host_cuda::mbar_fence_init());
}
IK_DEVICE void mbar_arrive(uint32_t barrier IK_AT) {
  IK_PTX("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(barrier) : "memory");
  IK_HOST(host_cuda::mbar_arrive(barrier, 0, at));
}
// One arrival, and `bytes` more to come by TMA in this phase.
IK_DEVICE void mbar_expect_tx(uint32_t barrier, int bytes IK_AT) {
  IK_PTX("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(barrier), "r"(bytes) : "memory");
  IK_HOST(host_cuda::mbar_arrive(barrier, bytes, at));
}
// Until the phase of this parity has completed; a fresh barrier is in phase 0, so parity 1 passes at once.
IK_DEVICE void mbar_wait(uint32_t barrier, int parity IK_AT) {
  IK_PTX(
      "{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra WAIT;\n"
      "DONE:\n}" : : "r"(barrier),
      "r"(parity) : "memory");
  IK_HOST(host_cuda::mbar_wait(barrier, parity, at));
}
// On another block's barrier, addressed through mapa, where no write of this thread has to be seen there: for a stage
// that was only read. Costs no fence.
IK_DEVICE void mbar_arrive_remote(uint32_t barrier IK_AT) {
  IK_PTX("mbarrier.arrive.shared::cluster.b64 _, [%0];" : : "r"(barrier) : "memory");
  IK_HOST(host_cuda::mbar_arrive(barrier, 0, at));
}
// On another block's barrier, addressed through mapa.
IK_DEVICE void mbar_arrive_cluster(uint32_t barrier IK_AT) {
  IK_PTX("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" : : "r"(barrier) : "memory");
  IK_HOST(host_cuda::mbar_arrive(barrier, 0, at));
}
// For arrivals from other blocks of the cluster.
IK_DEVICE void mbar_wait_cluster(uint32_t barrier, int parity IK_AT) {
  IK_PTX(
      "{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\n"
      "bra WAIT;\nDONE:\n}" : : "r"(barrier),
      "r"(parity) : "memory");
  IK_HOST(host_cuda::mbar_wait(barrier, parity, at));
}

// This thread's writes to shared memory before the fence are visible to TMA and wgmma started after it (by this thread,
// or by one that a barrier orders behind it).
IK_DEVICE void fence_proxy_async(IK_AT_ALONE) {
  IK_PTX("fence.proxy.async.shared::cta;" : : : "memory");
  IK_HOST(host_cuda::fence_proxy_async());
}

// ---- TMA: coordinates innermost first, out of bounds is zero ----

IK_DEVICE void tma_prefetch(const TensorMap* map) {
  IK_PTX("prefetch.tensormap [%0];" : : "l"(map) : "memory");
  IK_HOST(static_cast<void>(map));
}
IK_DEVICE void tma_load_2d(const TensorMap* map, uint32_t shared, uint32_t barrier, int x0, int x1 IK_AT) {
  IK_PTX(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" : : "r"(
          shared),
      "l"(map), "r"(barrier), "r"(x0), "r"(x1) : "memory");
  IK_HOST(host_cuda::tma_load(map, shared, barrier, {x0, x1}, at));
}
IK_DEVICE void tma_load_3d(const TensorMap* map, uint32_t shared, uint32_t barrier, int x0, int x1, int x2 IK_AT) {
  IK_PTX("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
         :
         : "r"(shared), "l"(map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2)
         : "memory");
  IK_HOST(host_cuda::tma_load(map, shared, barrier, {x0, x1, x2}, at));
}
IK_DEVICE void tma_load_4d(const TensorMap* map, uint32_t shared, uint32_t barrier, int x0, int x1, int x2,
                           int x3 IK_AT) {
  IK_PTX(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" : : "r"(shared),
      "l"(map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3) : "memory");
  IK_HOST(host_cuda::tma_load(map, shared, barrier, {x0, x1, x2, x3}, at));
}
IK_DEVICE void tma_load_5d(const TensorMap* map, uint32_t shared, uint32_t barrier, int x0, int x1, int x2, int x3,
                           int x4 IK_AT) {
  IK_PTX(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6, %7}], [%2];" : : "r"(shared),
      "l"(map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
  IK_HOST(host_cuda::tma_load(map, shared, barrier, {x0, x1, x2, x3, x4}, at));
}
// One tap of a convolution: the map's number of pixels from (n, h, w) on, along w, then h, then n of the box of base
// pixels that the map describes, each moved by the tap's offset.
IK_DEVICE void tma_load_im2col_4d(const TensorMap* map, uint32_t shared, uint32_t barrier, int c, int w, int h, int n,
                                  int offset_w, int offset_h IK_AT) {
  IK_PTX(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2], {%7, %8};" : : "r"(shared),
      "l"(map), "r"(barrier), "r"(c), "r"(w), "r"(h), "r"(n), "h"(static_cast<uint16_t>(offset_w)),
      "h"(static_cast<uint16_t>(offset_h)) : "memory");
  IK_HOST(host_cuda::tma_load_im2col(map, shared, barrier, {c, w, h, n}, {offset_w, offset_h}, at));
}
// The same tile to the same offset of every block in `blocks` (a bit per rank), completing on each block's barrier.
IK_DEVICE void tma_multicast_2d(const TensorMap* map, uint32_t shared, uint32_t barrier, uint16_t blocks, int x0,
                                int x1 IK_AT) {
  IK_PTX(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%4, %5}], [%2], %3;" : : "r"(shared),
      "l"(map), "r"(barrier), "h"(blocks), "r"(x0), "r"(x1) : "memory");
  IK_HOST(host_cuda::tma_multicast(map, shared, barrier, blocks, {x0, x1}, at));
}
IK_DEVICE void tma_multicast_4d(const TensorMap* map, uint32_t shared, uint32_t barrier, uint16_t blocks, int x0,
                                int x1, int x2, int x3 IK_AT) {
  IK_PTX(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%4, %5, %6, %7}], [%2], %3;" : : "r"(shared),
      "l"(map), "r"(barrier), "h"(blocks), "r"(x0), "r"(x1), "r"(x2), "r"(x3) : "memory");
  IK_HOST(host_cuda::tma_multicast(map, shared, barrier, blocks, {x0, x1, x2, x3}, at));
}
IK_DEVICE void tma_store_2d(const TensorMap* map, uint32_t shared, int x0, int x1 IK_AT) {
  IK_PTX("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" : : "l"(map), "r"(shared),
         "r"(x0), "r"(x1) : "memory");
  IK_HOST(host_cuda::tma_store(map, shared, {x0, x1}, at));
}
IK_DEVICE void tma_store_3d(const TensorMap* map, uint32_t shared, int x0, int x1, int x2 IK_AT) {
  IK_PTX("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" : : "l"(map), "r"(shared),
         "r"(x0), "r"(x1), "r"(x2) : "memory");
  IK_HOST(host_cuda::tma_store(map, shared, {x0, x1, x2}, at));
}
IK_DEVICE void tma_store_4d(const TensorMap* map, uint32_t shared, int x0, int x1, int x2, int x3 IK_AT) {
  IK_PTX("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" : : "l"(map),
         "r"(shared), "r"(x0), "r"(x1), "r"(x2), "r"(x3) : "memory");
  IK_HOST(host_cuda::tma_store(map, shared, {x0, x1, x2, x3}, at));
}
IK_DEVICE void tma_store_commit(IK_AT_ALONE) {
  IK_PTX("cp.async.bulk.commit_group;" : : : "memory");
  IK_HOST(host_cuda::tma_store_commit());
}
// Until shared memory may be overwritten (kPending of this thread's groups may still read it).
template <int kPending>
IK_DEVICE void tma_store_wait_read(IK_AT_ALONE) {
  IK_PTX("cp.async.bulk.wait_group.read %0;" : : "n"(kPending) : "memory");
  IK_HOST(host_cuda::tma_store_wait(kPending));
}
template <int kPending>
IK_DEVICE void tma_store_wait(IK_AT_ALONE) {
  IK_PTX("cp.async.bulk.wait_group %0;" : : "n"(kPending) : "memory");
  IK_HOST(host_cuda::tma_store_wait(kPending));
}
// `bytes` (a multiple of 16) of contiguous memory.
IK_DEVICE void bulk_load(uint32_t shared, const void* global, int bytes, uint32_t barrier IK_AT) {
  IK_PTX("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" : : "r"(shared),
         "l"(global), "r"(bytes), "r"(barrier) : "memory");
  IK_HOST(host_cuda::bulk_load(shared, global, bytes, barrier, at));
}
// This block's shared memory to another block's, whose barrier it completes on.
IK_DEVICE void bulk_copy_cluster(uint32_t destination, uint32_t source, int bytes, uint32_t barrier IK_AT) {
  IK_PTX("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" : : "r"(
             destination),
         "r"(source), "r"(bytes), "r"(barrier) : "memory");
  IK_HOST(host_cuda::bulk_copy_cluster(destination, source, bytes, barrier, at));
}

// ---- clusters ----

IK_DEVICE uint32_t cluster_ctarank() {
  uint32_t rank;
  IK_PTX("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  IK_HOST(rank = host_cuda::cluster_rank());
  return rank;
}
// The address of the same place in another block's shared memory.
IK_DEVICE uint32_t mapa(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  IK_PTX("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  IK_HOST(mapped = host_cuda::mapa(address, rank));
  return mapped;
}
IK_DEVICE void cluster_sync(IK_AT_ALONE) {
  IK_PTX("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" : : : "memory");
  IK_HOST(host_cuda::cluster_sync(at));
}
IK_DEVICE float ld_cluster_f32(uint32_t address IK_AT) {
  float v;
  IK_PTX("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  IK_HOST(host_cuda::load_shared(&v, address, 4, at));
  return v;
}

// ---- a warpgroup's registers, and dependent launches ----

template <int kRegisters>
IK_DEVICE void reg_inc() {
  IK_PTX("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(kRegisters));
}
template <int kRegisters>
IK_DEVICE void reg_dec() {
  IK_PTX("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(kRegisters));
}
// Waits for the stream's previous kernel where this one was launched with IK_LAUNCH_OVERLAPPED.
IK_DEVICE void grid_dependency_wait() {
  IK_PTX("griddepcontrol.wait;" : : : "memory");
  IK_HOST(host_cuda::grid_dependency_wait());
}
// Lets the stream's next kernel start, if it was launched so.
IK_DEVICE void grid_dependency_launch() { IK_PTX("griddepcontrol.launch_dependents;" : : : "memory"); }

// ---- wgmma ----

// Operands in shared memory. K-major: `stride_bytes` between groups of 8 rows; `leading_bytes` between 16-byte columns
// (without a swizzle only). MN-major: `leading_bytes` between swizzle spans along M or N, `stride_bytes` between groups
// of 8 along K. Moving by 16 elements along a swizzled K is an addition of 2 to the descriptor (32 bytes >> 4).
template <Swizzle kSwizzle>
IK_DEVICE uint64_t make_desc(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes) {
  constexpr uint64_t kLayout = kSwizzle == Swizzle::k128  ? 1
                               : kSwizzle == Swizzle::k64 ? 2
                               : kSwizzle == Swizzle::k32 ? 3
                                                          : 0;
  return (kLayout << 62) | (static_cast<uint64_t>(stride_bytes >> 4) << 32) |
         (static_cast<uint64_t>(leading_bytes >> 4) << 16) | ((address & 0x3ffff) >> 4);
}
// K-major, rows of 128 swizzled bytes.
IK_DEVICE uint64_t make_desc_sw128(uint32_t address) { return make_desc<Swizzle::k128>(address, 16, 1024); }
// K-major, 8 rows x 16 bytes contiguous.
IK_DEVICE uint64_t make_desc_none(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes) {
  return make_desc<Swizzle::kNone>(address, leading_bytes, stride_bytes);
}

IK_DEVICE void wgmma_fence(IK_AT_ALONE) {
  IK_PTX("wgmma.fence.sync.aligned;" : : : "memory");
  IK_HOST(host_cuda::wgmma_fence(at));
}
IK_DEVICE void wgmma_commit(IK_AT_ALONE) {
  IK_PTX("wgmma.commit_group.sync.aligned;" : : : "memory");
  IK_HOST(host_cuda::wgmma_commit(at));
}
template <int kPending>
IK_DEVICE void wgmma_wait(IK_AT_ALONE) {
  IK_PTX("wgmma.wait_group.sync.aligned %0;" : : "n"(kPending) : "memory");
  IK_HOST(host_cuda::wgmma_wait(kPending, at));
}

}  // namespace ik::cuda

#include "cuda/wgmma.cuh"
