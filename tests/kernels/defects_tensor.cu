// ldmatrix and wgmma. The marked line is the one to be reported.
#include "cuda/launch.h"
#include "defects.h"

namespace ik::cuda {
namespace {

template <bool kDefect>
__global__ void matrix_row_misaligned(Arguments a) {
  IK_SHARED(uint4, s, [64]);
  if (threadIdx.x < 64) s[threadIdx.x] = make_uint4(0, 0, 0, 0);
  __syncthreads();
  uint32_t r[4];
  ldmatrix_x4(r, smem_u32(s) + threadIdx.x % 32 * 16 + (kDefect ? 8 : 0));  // reported: misaligned
  a.y[threadIdx.x] = static_cast<float>(r[0]);
}

template <bool kDefect>
__global__ void matrix_of_other_lanes(Arguments a) {
  IK_SHARED(uint4, s, [256]);
  s[threadIdx.x] = make_uint4(0, 0, 0, 0);
  if (!kDefect) __syncthreads();
  uint32_t r[4];
  ldmatrix_x4(r, smem_u32(s) + (threadIdx.x ^ 32) * 16);  // reported: shared race
  a.y[threadIdx.x] = static_cast<float>(r[0]);
}

constexpr int kTileBytes = 64 * 128;  // 64 rows of 64 bf16

struct alignas(1024) TileMemory {
  unsigned char bytes[2 * kTileBytes];
};

// Two warpgroups, each with a product of its own tile.
struct Tiles {
  uint32_t address;
  IK_DEVICE uint64_t descriptor() const { return make_desc_sw128(address + threadIdx.x / 128 * kTileBytes); }
};

IK_DEVICE Tiles fill_tiles(unsigned char* bytes) {
  for (unsigned i = threadIdx.x * 16; i < 2 * kTileBytes; i += 256 * 16) {
    *reinterpret_cast<uint4*>(bytes + i) = make_uint4(0, 0, 0, 0);
  }
  return {smem_u32(bytes)};
}

template <bool kDefect>
__global__ void product_without_proxy_fence(Arguments a) {
  IK_SHARED(TileMemory, memory);
  unsigned char* const bytes = memory.bytes;
  const Tiles tiles = fill_tiles(bytes);
  if (!kDefect) fence_proxy_async();
  __syncthreads();
  float d[32] = {};
  wgmma_fence();
  Wgmma<bf16, 64>::run(d, tiles.descriptor(), tiles.descriptor(), 0);  // reported: missing proxy fence
  wgmma_commit();
  wgmma_wait<0>();
  a.y[threadIdx.x] = d[0];
}

template <bool kDefect>
__global__ void product_without_fence(Arguments a) {
  IK_SHARED(TileMemory, memory);
  unsigned char* const bytes = memory.bytes;
  const Tiles tiles = fill_tiles(bytes);
  fence_proxy_async();
  __syncthreads();
  float d[32] = {};
  if (!kDefect) wgmma_fence();
  Wgmma<bf16, 64>::run(d, tiles.descriptor(), tiles.descriptor(), 0);  // reported: wgmma
  wgmma_commit();
  wgmma_wait<0>();
  a.y[threadIdx.x] = d[0];
}

template <bool kDefect>
__global__ void accumulators_written_in_flight(Arguments a) {
  IK_SHARED(TileMemory, memory);
  unsigned char* const bytes = memory.bytes;
  const Tiles tiles = fill_tiles(bytes);
  fence_proxy_async();
  __syncthreads();
  float d[32] = {};
  wgmma_fence();
  Wgmma<bf16, 64>::run(d, tiles.descriptor(), tiles.descriptor(), 0);
  wgmma_commit();
  if (kDefect) d[3] = 1;
  wgmma_wait<0>();  // reported: wgmma
  a.y[threadIdx.x] = d[0];
}

template <bool kDefect>
__global__ void tile_overwritten_in_flight(Arguments a) {
  IK_SHARED(TileMemory, memory);
  unsigned char* const bytes = memory.bytes;
  const Tiles tiles = fill_tiles(bytes);
  fence_proxy_async();
  __syncthreads();
  float d[32] = {};
  wgmma_fence();
  Wgmma<bf16, 64>::run(d, tiles.descriptor(), tiles.descriptor(), 0);
  wgmma_commit();
  if (!kDefect) wgmma_wait<0>();
  __syncthreads();
  if (threadIdx.x == 0) bytes[0] = 1;  // reported: shared race
  wgmma_wait<0>();
  a.y[threadIdx.x] = d[0];
}

template <bool kDefect>
__global__ void only_one_thread_waits_for_the_tile(Arguments a) {
  IK_SHARED(TileMemory, memory);
  unsigned char* const bytes = memory.bytes;
  IK_SHARED(uint64_t, barrier, [1]);
  if (threadIdx.x == 0) {
    mbar_init(smem_u32(barrier), 1);
    mbar_fence_init();
  }
  const Tiles tiles = fill_tiles(bytes);
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    mbar_expect_tx(smem_u32(barrier), 1024);
    bulk_load(smem_u32(bytes), a.x, 1024, smem_u32(barrier));
  }
  if (!kDefect || threadIdx.x == 0) mbar_wait(smem_u32(barrier), 0);
  float d[32] = {};
  wgmma_fence();
  Wgmma<bf16, 64>::run(d, tiles.descriptor(), tiles.descriptor(), 0);  // reported: shared race
  wgmma_commit();
  wgmma_wait<0>();
  a.y[threadIdx.x] = d[0];
}

template <bool kDefect>
__global__ void descriptors_differ(Arguments a) {
  IK_SHARED(TileMemory, memory);
  unsigned char* const bytes = memory.bytes;
  const Tiles tiles = fill_tiles(bytes);
  fence_proxy_async();
  __syncthreads();
  float d[32] = {};
  wgmma_fence();
  const uint64_t b = tiles.descriptor() + (kDefect && threadIdx.x % 32 == 5 ? 2 : 0);
  Wgmma<bf16, 64>::run(d, tiles.descriptor(), b, 0);  // reported: wgmma
  wgmma_commit();
  wgmma_wait<0>();
  a.y[threadIdx.x] = d[0];
}

template <bool kDefect>
__global__ void operand_out_of_bounds(Arguments a) {
  IK_SHARED(TileMemory, memory);
  unsigned char* const bytes = memory.bytes;
  const Tiles tiles = fill_tiles(bytes);
  fence_proxy_async();
  __syncthreads();
  float d[32] = {};
  wgmma_fence();
  const uint64_t b = tiles.descriptor() + (kDefect ? 2 * kTileBytes / 16 : 0);
  Wgmma<bf16, 64>::run(d, tiles.descriptor(), b, 0);  // reported: shared out of bounds
  wgmma_commit();
  wgmma_wait<0>();
  a.y[threadIdx.x] = d[0];
}

}  // namespace

std::vector<DefectCase> tensor_defects() {
  return {
      IK_DEFECT(matrix_row_misaligned, 1, 1, 256),
      IK_DEFECT(matrix_of_other_lanes, 1, 1, 256),
      IK_DEFECT(product_without_proxy_fence, 1, 1, 256),
      IK_DEFECT(product_without_fence, 1, 1, 256),
      IK_DEFECT(accumulators_written_in_flight, 1, 1, 256),
      IK_DEFECT(tile_overwritten_in_flight, 1, 1, 256),
      IK_DEFECT(only_one_thread_waits_for_the_tile, 1, 1, 256),
      IK_DEFECT(descriptors_differ, 1, 1, 256),
      IK_DEFECT(operand_out_of_bounds, 1, 1, 256),
  };
}

}  // namespace ik::cuda
