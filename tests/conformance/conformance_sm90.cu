// Primitives of Hopper: stmatrix, wgmma and its descriptors, TMA, bulk copies, clusters.
#include "conformance.h"
#include "cuda/launch.h"

namespace ik::conformance {
namespace {

using namespace ik::cuda;

constexpr int kLanes = 32;
constexpr int kWarpgroup = 128;

IK_DEVICE void copy_in(uint32_t shared, const uint32_t* words, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) sts32(shared + 4 * i, words[i]);
}
IK_DEVICE void copy_out(uint32_t* words, uint32_t shared, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) words[i] = lds32(shared + 4 * i);
}

// ---- stmatrix ----

constexpr int kStoredWords = 512;

// input: the address of each lane's row in words, then its registers. output: shared memory, zero where not written.
template <int kMatrices, bool kTranspose>
__global__ void store_matrices(const uint32_t* input, uint32_t* output) {
  IK_SHARED(uint4, memory, [kStoredWords / 4]);
  const int lane = threadIdx.x;
  const uint32_t base = smem_u32(memory);
  for (int i = lane; i < kStoredWords; i += kLanes) sts32(base + 4 * i, 0);
  __syncwarp();
  uint32_t r[kMatrices];
  for (int i = 0; i < kMatrices; ++i) r[i] = input[kLanes + kMatrices * lane + i];
  const uint32_t row = base + 4 * input[lane];
  if constexpr (kMatrices == 2) stmatrix_x2(row, r);
  if constexpr (kMatrices == 4 && !kTranspose) stmatrix_x4(row, r);
  if constexpr (kMatrices == 4 && kTranspose) stmatrix_x4_trans(row, r);
  __syncwarp();
  copy_out(output, base, kStoredWords);
}

// ---- wgmma ----

// Bytes of shared memory: A, then at kOffsetB the operand B; both 1024-byte aligned.
struct WgmmaSizes {
  int words;     // of both operands
  int offset_b;  // bytes
  int leading_a, stride_a, leading_b, stride_b;
};

// input: shared memory as it is, then (A in registers) 4 words per thread, then d [128][kN / 2].
template <typename T, int kN, Swizzle kSwizzle, bool kRegisters, int kTransposeA, int kTransposeB>
__global__ void __launch_bounds__(kWarpgroup)
    warpgroup_multiply(const uint32_t* input, float* output, WgmmaSizes sizes, int accumulate) {
  IK_DYNAMIC_SHARED(memory);
  const int thread = threadIdx.x;
  const uint32_t base = smem_u32(memory);
  copy_in(base, input, sizes.words);
  fence_proxy_async();
  __syncthreads();
  const uint32_t* rest = input + sizes.words;
  uint32_t a[4];
  for (int i = 0; i < 4; ++i) a[i] = kRegisters ? rest[4 * thread + i] : 0;
  const float* d_in = reinterpret_cast<const float*>(rest + (kRegisters ? 4 * kWarpgroup : 0));
  float d[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[i] = d_in[thread * (kN / 2) + i];
  const uint64_t a_descriptor = make_desc<kSwizzle>(base, sizes.leading_a, sizes.stride_a);
  const uint64_t b_descriptor = make_desc<kSwizzle>(base + sizes.offset_b, sizes.leading_b, sizes.stride_b);
  wgmma_fence();
  if constexpr (kRegisters) {
    Wgmma<T, kN, 0, kTransposeB>::run(d, a, b_descriptor, accumulate);
  } else {
    Wgmma<T, kN, kTransposeA, kTransposeB>::run(d, a_descriptor, b_descriptor, accumulate);
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) output[thread * (kN / 2) + i] = d[i];
}

// A without a swizzle, in columns of 16 bytes of all rows, from any row on; B with one of 128 bytes.
// numbers: words, bytes before A, leading bytes of A, offset of B.
__global__ void __launch_bounds__(kWarpgroup) warpgroup_multiply_rows(const uint32_t* input, float* output, int words,
                                                                      int offset_a, int leading_a, int offset_b) {
  IK_DYNAMIC_SHARED(memory);
  constexpr int kN = 64;
  constexpr int kRowGroup = 128;
  const uint32_t base = smem_u32(memory);
  copy_in(base, input, words);
  fence_proxy_async();
  __syncthreads();
  float d[kN / 2] = {};
  wgmma_fence();
  Wgmma<bf16, kN>::run(d, make_desc_none(base + offset_a, leading_a, kRowGroup), make_desc_sw128(base + offset_b), 0);
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) output[threadIdx.x * (kN / 2) + i] = d[i];
}

void run_wgmma_rows(const Request& request) {
  const std::vector<int>& n = request.numbers;
  IK_LAUNCH(warpgroup_multiply_rows, dim3(1), dim3(kWarpgroup), 4 * n.at(0), request.context,
            static_cast<const uint32_t*>(request.input), static_cast<float*>(request.output), n.at(0), n.at(1), n.at(2),
            n.at(3));
}

// numbers: type, N, swizzle, registers, transpose A, transpose B, accumulate, words, offset of B, then leading and
// stride bytes of A and of B.
using WgmmaKernel = void (*)(const uint32_t*, float*, WgmmaSizes, int);
struct WgmmaEntry {
  int type, N, swizzle, registers, transpose_a, transpose_b;
  WgmmaKernel kernel;
};
#define IK_ENTRY(type, T, N, swizzle, registers, ta, tb) \
  {type, N, swizzle, registers, ta, tb, warpgroup_multiply<T, N, static_cast<Swizzle>(swizzle), registers, ta, tb>}

const WgmmaEntry kWgmma[] = {
    IK_ENTRY(0, bf16, 64, 3, false, 0, 0),  IK_ENTRY(1, fp16, 64, 3, false, 0, 0),
    IK_ENTRY(0, bf16, 64, 2, false, 0, 0),  IK_ENTRY(0, bf16, 64, 1, false, 0, 0),
    IK_ENTRY(0, bf16, 64, 0, false, 0, 0),  IK_ENTRY(0, bf16, 96, 3, false, 0, 0),
    IK_ENTRY(0, bf16, 128, 3, false, 0, 0), IK_ENTRY(0, bf16, 160, 3, false, 0, 0),
    IK_ENTRY(0, bf16, 192, 3, false, 0, 0), IK_ENTRY(0, bf16, 224, 3, false, 0, 0),
    IK_ENTRY(0, bf16, 248, 3, false, 0, 0), IK_ENTRY(0, bf16, 256, 3, false, 0, 0),
    IK_ENTRY(0, bf16, 64, 3, true, 0, 0),   IK_ENTRY(1, fp16, 64, 3, true, 0, 0),
    IK_ENTRY(0, bf16, 128, 3, true, 0, 0),  IK_ENTRY(0, bf16, 64, 3, false, 1, 0),
    IK_ENTRY(0, bf16, 64, 3, false, 0, 1),  IK_ENTRY(0, bf16, 128, 3, false, 1, 1),
};

void run_wgmma(const Request& request) {
  const std::vector<int>& n = request.numbers;
  const WgmmaSizes sizes = {n.at(7), n.at(8), n.at(9), n.at(10), n.at(11), n.at(12)};
  for (const WgmmaEntry& entry : kWgmma) {
    const int key[] = {entry.type, entry.N, entry.swizzle, entry.registers, entry.transpose_a, entry.transpose_b};
    if (!std::equal(key, key + 6, n.begin())) continue;
    IK_LAUNCH(entry.kernel, dim3(1), dim3(kWarpgroup), 4 * sizes.words, request.context,
              static_cast<const uint32_t*>(request.input), static_cast<float*>(request.output), sizes, n.at(6));
    return;
  }
  throw std::runtime_error("no such wgmma");
}

// ---- TMA ----

struct Coordinates {
  int x[5];
  int offset_w, offset_h;
};

enum class Load { k2d, k3d, k4d, k5d, kIm2col };

// output: the tile as it lies in shared memory.
template <Load kLoad>
__global__ void load_tile(const __grid_constant__ TensorMap map, uint32_t* output, Coordinates at, int words) {
  IK_DYNAMIC_SHARED(memory);
  IK_SHARED(uint64_t, barrier, [1]);
  const uint32_t base = smem_u32(memory);
  const uint32_t full = smem_u32(barrier);
  if (threadIdx.x == 0) {
    mbar_init(full, 1);
    mbar_fence_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbar_expect_tx(full, 4 * words);
    if constexpr (kLoad == Load::k2d) tma_load_2d(&map, base, full, at.x[0], at.x[1]);
    if constexpr (kLoad == Load::k3d) tma_load_3d(&map, base, full, at.x[0], at.x[1], at.x[2]);
    if constexpr (kLoad == Load::k4d) tma_load_4d(&map, base, full, at.x[0], at.x[1], at.x[2], at.x[3]);
    if constexpr (kLoad == Load::k5d) tma_load_5d(&map, base, full, at.x[0], at.x[1], at.x[2], at.x[3], at.x[4]);
    if constexpr (kLoad == Load::kIm2col) {
      tma_load_im2col_4d(&map, base, full, at.x[0], at.x[1], at.x[2], at.x[3], at.offset_w, at.offset_h);
    }
  }
  mbar_wait(full, 0);
  copy_out(output, base, words);
}

enum class Store { k2d, k3d, k4d };

// input: the tile as it lies in shared memory; the map is of the output.
template <Store kStore>
__global__ void store_tile(const __grid_constant__ TensorMap map, const uint32_t* input, Coordinates at, int words) {
  IK_DYNAMIC_SHARED(memory);
  const uint32_t base = smem_u32(memory);
  copy_in(base, input, words);
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x != 0) return;
  if constexpr (kStore == Store::k2d) tma_store_2d(&map, base, at.x[0], at.x[1]);
  if constexpr (kStore == Store::k3d) tma_store_3d(&map, base, at.x[0], at.x[1], at.x[2]);
  if constexpr (kStore == Store::k4d) tma_store_4d(&map, base, at.x[0], at.x[1], at.x[2], at.x[3]);
  tma_store_commit();
  tma_store_wait<0>();
}

// numbers: rank, swizzle, words of the tile, then sizes, strides (rank - 1), box, steps and coordinates.
struct TileRequest {
  int rank;
  Swizzle swizzle;
  int words;
  int64_t sizes[5], strides[4];
  int box[5], steps[5];
  Coordinates at;

  explicit TileRequest(const std::vector<int>& n)
      : rank(n.at(0)), swizzle(static_cast<Swizzle>(n.at(1))), words(n.at(2)), at{} {
    size_t next = 3;
    for (int i = 0; i < rank; ++i) sizes[i] = n.at(next++);
    for (int i = 0; i + 1 < rank; ++i) strides[i] = n.at(next++);
    for (int i = 0; i < rank; ++i) box[i] = n.at(next++);
    for (int i = 0; i < rank; ++i) steps[i] = n.at(next++);
    for (int i = 0; i < rank; ++i) at.x[i] = n.at(next++);
  }

  TensorMap map(const void* base) const {
    constexpr DType kType = DType::kBFloat16;
    switch (rank) {
      case 2:
        return make_tensor_map(
            {kType, base, {sizes[0], sizes[1]}, {strides[0]}, {box[0], box[1]}, swizzle, {steps[0], steps[1]}});
      case 3:
        return make_tensor_map({kType,
                                base,
                                {sizes[0], sizes[1], sizes[2]},
                                {strides[0], strides[1]},
                                {box[0], box[1], box[2]},
                                swizzle,
                                {steps[0], steps[1], steps[2]}});
      case 4:
        return make_tensor_map({kType,
                                base,
                                {sizes[0], sizes[1], sizes[2], sizes[3]},
                                {strides[0], strides[1], strides[2]},
                                {box[0], box[1], box[2], box[3]},
                                swizzle,
                                {steps[0], steps[1], steps[2], steps[3]}});
      default:
        return make_tensor_map({kType,
                                base,
                                {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]},
                                {strides[0], strides[1], strides[2], strides[3]},
                                {box[0], box[1], box[2], box[3], box[4]},
                                swizzle,
                                {steps[0], steps[1], steps[2], steps[3], steps[4]}});
    }
  }
};

void run_load_tile(const Request& request) {
  const TileRequest tile(request.numbers);
  const TensorMap map = tile.map(request.input);
  using Kernel = void (*)(const TensorMap, uint32_t*, Coordinates, int);
  const Kernel kernels[] = {load_tile<Load::k2d>, load_tile<Load::k3d>, load_tile<Load::k4d>, load_tile<Load::k5d>};
  IK_LAUNCH(kernels[tile.rank - 2], dim3(1), dim3(kLanes), 4 * tile.words, request.context, map,
            static_cast<uint32_t*>(request.output), tile.at, tile.words);
}

// The input is the tile, then the initial tensor, which the host has copied to the output.
void run_store_tile(const Request& request) {
  const TileRequest tile(request.numbers);
  const TensorMap map = tile.map(request.output);
  using Kernel = void (*)(const TensorMap, const uint32_t*, Coordinates, int);
  const Kernel kernels[] = {store_tile<Store::k2d>, store_tile<Store::k3d>, store_tile<Store::k4d>};
  IK_LAUNCH(kernels[tile.rank - 2], dim3(1), dim3(kLanes), 4 * tile.words, request.context, map,
            static_cast<const uint32_t*>(request.input), tile.at, tile.words);
}

// numbers: N, H, W, C, R, S, stride, padding h and w, dilation, channels, pixels, swizzle, then c, w, h, n and the
// tap's offsets w and h.
void run_im2col(const Request& request) {
  const std::vector<int>& n = request.numbers;
  const ConvShape shape = {n.at(0), n.at(3), n.at(1), n.at(2), 1,       n.at(4), n.at(5),
                           n.at(6), n.at(6), n.at(7), n.at(8), n.at(9), n.at(9)};
  NhwcInput x;
  x.data = request.input;
  x.stride_w = shape.C;
  x.stride_h = shape.C * shape.W;
  x.stride_n = shape.C * shape.W * shape.H;
  const TensorMap map =
      make_im2col_map({DType::kBFloat16, x, shape, n.at(10), n.at(11), static_cast<Swizzle>(n.at(12))});
  const Coordinates at = {{n.at(13), n.at(14), n.at(15), n.at(16), 0}, n.at(17), n.at(18)};
  const int words = n.at(10) * n.at(11) / 2;
  IK_LAUNCH(load_tile<Load::kIm2col>, dim3(1), dim3(kLanes), 4 * words, request.context, map,
            static_cast<uint32_t*>(request.output), at, words);
}

// ---- bulk copies and clusters ----

constexpr int kBulkWords = 256;

__global__ void load_bulk(const uint32_t* input, uint32_t* output) {
  IK_SHARED(uint4, memory, [kBulkWords / 4]);
  IK_SHARED(uint64_t, barrier, [1]);
  const uint32_t base = smem_u32(memory);
  const uint32_t full = smem_u32(barrier);
  if (threadIdx.x == 0) {
    mbar_init(full, 1);
    mbar_fence_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbar_expect_tx(full, 4 * kBulkWords);
    bulk_load(base, input, 4 * kBulkWords, full);
  }
  mbar_wait(full, 0);
  copy_out(output, base, kBulkWords);
}

// Block r of the cluster sends its words to block (r + 1) % size, and reads one float of it directly.
__global__ void pass_on(const uint32_t* input, uint32_t* output) {
  constexpr uint32_t kBlocks = 2;
  IK_SHARED(uint4, own, [kBulkWords / 4]);
  IK_SHARED(uint4, received, [kBulkWords / 4]);
  IK_SHARED(uint64_t, barrier, [1]);
  const uint32_t rank = cluster_ctarank();
  const uint32_t next = (rank + 1) % kBlocks;
  const uint32_t full = smem_u32(barrier);
  copy_in(smem_u32(own), input + rank * kBulkWords, kBulkWords);
  if (threadIdx.x == 0) {
    mbar_init(full, 1);
    mbar_fence_init();
    mbar_expect_tx(full, 4 * kBulkWords);
  }
  fence_proxy_async();
  cluster_sync();
  if (threadIdx.x == 0) {
    bulk_copy_cluster(mapa(smem_u32(received), next), smem_u32(own), 4 * kBulkWords, mapa(full, next));
  }
  mbar_wait_cluster(full, 0);
  const float remote = ld_cluster_f32(mapa(smem_u32(own), next) + 4 * threadIdx.x);
  copy_out(output + rank * kBulkWords, smem_u32(received), kBulkWords);
  output[kBlocks * kBulkWords + rank * kLanes + threadIdx.x] = __float_as_uint(remote);
  cluster_sync();
}

// One block loads the tile for both.
__global__ void load_for_all(const __grid_constant__ TensorMap map, uint32_t* output, int words) {
  IK_DYNAMIC_SHARED(memory);
  IK_SHARED(uint64_t, barrier, [1]);
  constexpr uint16_t kBoth = 3;
  const uint32_t base = smem_u32(memory);
  const uint32_t full = smem_u32(barrier);
  const uint32_t rank = cluster_ctarank();
  if (threadIdx.x == 0) {
    mbar_init(full, 1);
    mbar_fence_init();
    mbar_expect_tx(full, 4 * words);
  }
  cluster_sync();
  if (rank == 0 && threadIdx.x == 0) tma_multicast_2d(&map, base, full, kBoth, 0, 0);
  mbar_wait_cluster(full, 0);
  copy_out(output + rank * words, base, words);
  cluster_sync();
}

__global__ void elect(const uint32_t*, uint32_t* output) {
  const int elected = elect_one() ? 1 : 0;
  const uint32_t votes = __ballot_sync(0xffffffffu, elected);
  output[threadIdx.x] = __popc(votes);
}

void run_store_matrices(const Request& request) {
  using Kernel = void (*)(const uint32_t*, uint32_t*);
  const int matrices = request.numbers.at(0);
  const bool transpose = request.numbers.at(1) != 0;
  const Kernel kernel = matrices == 2 ? store_matrices<2, false>
                        : transpose   ? store_matrices<4, true>
                                      : store_matrices<4, false>;
  IK_LAUNCH(kernel, dim3(1), dim3(kLanes), 0, request.context, static_cast<const uint32_t*>(request.input),
            static_cast<uint32_t*>(request.output));
}

void run_cluster(const Request& request) {
  const auto* input = static_cast<const uint32_t*>(request.input);
  auto* output = static_cast<uint32_t*>(request.output);
  if (request.name == "pass_on") {
    IK_LAUNCH_CLUSTER(pass_on, 2, dim3(2), dim3(kLanes), 0, request.context, input, output);
    return;
  }
  const TileRequest tile(request.numbers);
  IK_LAUNCH_CLUSTER(load_for_all, 2, dim3(2), dim3(kLanes), 4 * tile.words, request.context, tile.map(input), output,
                    tile.words);
}

}  // namespace

bool run_sm90(const Request& request) {
  const auto* input = static_cast<const uint32_t*>(request.input);
  auto* output = static_cast<uint32_t*>(request.output);
  if (request.name == "store_matrices") {
    run_store_matrices(request);
  } else if (request.name == "wgmma") {
    run_wgmma(request);
  } else if (request.name == "wgmma_rows") {
    run_wgmma_rows(request);
  } else if (request.name == "load_tile") {
    run_load_tile(request);
  } else if (request.name == "store_tile") {
    run_store_tile(request);
  } else if (request.name == "im2col") {
    run_im2col(request);
  } else if (request.name == "load_bulk") {
    IK_LAUNCH(load_bulk, dim3(1), dim3(kLanes), 0, request.context, input, output);
  } else if (request.name == "elect") {
    IK_LAUNCH(elect, dim3(1), dim3(kLanes), 0, request.context, input, output);
  } else if (request.name == "pass_on" || request.name == "load_for_all") {
    run_cluster(request);
  } else {
    return false;
  }
  return true;
}

}  // namespace ik::conformance
