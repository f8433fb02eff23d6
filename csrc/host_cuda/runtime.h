// The kernel-facing half of the runtime that executes CUDA kernels on the host.
#pragma once
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <source_location>

namespace ik::host_cuda {

using Where = std::source_location;

// ---- the executing thread ----
uint3 thread_index() __attribute__((const));
uint3 block_index() __attribute__((const));
uint3 block_size() __attribute__((const));
uint3 grid_size() __attribute__((const));
int lane_index();
uint32_t cluster_rank();

// ---- memory ----
void* dynamic_shared() __attribute__((const));
void* static_shared(const void* key, size_t bytes, size_t alignment);
uint32_t shared_address(const void* shared, Where at);
void load_shared(void* value, uint32_t address, int bytes, Where at);
void store_shared(uint32_t address, const void* value, int bytes, Where at);
void load_global(void* value, const void* address, int bytes, Where at);
void store_global(void* address, const void* value, int bytes, Where at);

// ---- barriers and warps ----
void bar_sync(int id, int threads, Where at);  // threads -1: the whole block
void bar_arrive(int id, int threads, Where at);
void warp_sync(uint32_t mask, Where at);
uint32_t elect(Where at);
uint32_t ballot(uint32_t mask, int predicate, Where at);
enum class Shuffle { kIndex, kXor, kDown, kUp };
uint64_t shuffle_bits(Shuffle kind, uint32_t mask, uint64_t bits, int operand, int width, Where at);
template <typename T>
T shuffle(Shuffle kind, uint32_t mask, T v, int operand, int width, Where at) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  memcpy(&bits, &v, sizeof(T));
  bits = shuffle_bits(kind, mask, bits, operand, width, at);
  memcpy(&v, &bits, sizeof(T));
  return v;
}

// ---- matrices ----
enum class Operand { kBf16, kFp16, kTf32 };
void ldmatrix(uint32_t* r, int matrices, bool transpose, uint32_t row, Where at);
void stmatrix(uint32_t row, const uint32_t* r, int matrices, bool transpose, Where at);
void mma(float* d, const uint32_t* a, const uint32_t* b, Operand operand, Where at);
uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c);
uint32_t fma_fp16x2(uint32_t a, uint32_t b, uint32_t c);
uint32_t round_to_tf32(float v);

struct WgmmaArguments {
  float* d;
  const uint32_t* a_registers;  // null: A is in shared memory
  uint64_t a, b;                // descriptors
  int N;
  Operand operand;
  bool accumulate, transpose_a, transpose_b;
};
void wgmma(const WgmmaArguments& arguments, Where at);
void wgmma_fence(Where at);
void wgmma_commit(Where at);
void wgmma_wait(int pending, Where at);

// ---- asynchronous copies ----
void cp_async(uint32_t shared, const void* global, int size, int bytes, Where at);
void cp_async_commit();
void cp_async_wait(int pending);
void mbar_init(uint32_t barrier, int arrivals, Where at);
void mbar_fence_init();
void mbar_arrive(uint32_t barrier, int bytes, Where at);
void mbar_wait(uint32_t barrier, int parity, Where at);
void fence_proxy_async();

struct alignas(64) TensorMap {
  uint64_t base;
  int rank, element_size, swizzle;  // swizzle: 0 none, 1 32, 2 64, 3 128 bytes
  int64_t size[5], stride[5];       // bytes
  int box[5], step[5];
  int pixels;              // of a column; 0: a map of boxes
  int lower[2], upper[2];  // corners {w, h} of the im2col box, relative to the first and to the last pixel
};
void validate(const TensorMap& map);  // throws where the hardware has no such map
void tma_load(const TensorMap* map, uint32_t shared, uint32_t barrier, std::initializer_list<int> x, Where at);
void tma_load_im2col(const TensorMap* map, uint32_t shared, uint32_t barrier, std::initializer_list<int> x,
                     std::initializer_list<int> offset, Where at);
void tma_multicast(const TensorMap* map, uint32_t shared, uint32_t barrier, uint32_t blocks,
                   std::initializer_list<int> x, Where at);
void tma_store(const TensorMap* map, uint32_t shared, std::initializer_list<int> x, Where at);
void tma_store_commit();
void tma_store_wait(int pending);
void bulk_load(uint32_t shared, const void* global, int bytes, uint32_t barrier, Where at);
void bulk_copy_cluster(uint32_t destination, uint32_t source, int bytes, uint32_t barrier, Where at);

// ---- clusters ----
uint32_t mapa(uint32_t address, uint32_t rank);
void cluster_sync(Where at);

// ---- launches ----
void grid_dependency_wait();
struct Launch {
  const char* name;
  const void* kernel;
  uint3 grid, block;
  size_t shared, shared_limit;
  int cluster;
  bool overlapped;  // may start before the previous launch has ended
};
void launch(const Launch& launch, const std::function<void()>& kernel);

}  // namespace ik::host_cuda
