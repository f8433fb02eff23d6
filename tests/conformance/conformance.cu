// Primitives of sm_80: one block, one warp where nothing else is said. Thread t reads word t of each operand.
#include "conformance.h"
#include "cuda/launch.h"

namespace ik::conformance {
namespace {

using namespace ik::cuda;

constexpr int kLanes = 32;
constexpr int kSharedWords = 1024;

// input: the address of each lane's row in words, then the words of shared memory.
template <int kMatrices, bool kTranspose>
__global__ void load_matrices(const uint32_t* input, uint32_t* output) {
  IK_SHARED(uint4, memory, [kSharedWords / 4]);
  const int lane = threadIdx.x;
  const uint32_t base = smem_u32(memory);
  for (int i = lane; i < kSharedWords; i += kLanes) sts32(base + 4 * i, input[kLanes + i]);
  __syncwarp();
  uint32_t r[kMatrices];
  const uint32_t row = base + 4 * input[lane];
  if constexpr (kMatrices == 2 && !kTranspose) ldmatrix_x2(r, row);
  if constexpr (kMatrices == 2 && kTranspose) ldmatrix_x2_trans(r, row);
  if constexpr (kMatrices == 4 && !kTranspose) ldmatrix_x4(r, row);
  if constexpr (kMatrices == 4 && kTranspose) ldmatrix_x4_trans(r, row);
  for (int i = 0; i < kMatrices; ++i) output[kMatrices * lane + i] = r[i];
}

enum class Product { kBf16, kFp16, kTf32 };

// input: per warp-wide product 4 words of a, 2 of b and 4 floats of d for each lane.
template <Product kProduct>
__global__ void multiply(const uint32_t* input, float* output) {
  const uint32_t* mine = input + (blockIdx.x * kLanes + threadIdx.x) * 10;
  uint32_t a[4];
  uint32_t b[2];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = mine[i];
  for (int i = 0; i < 2; ++i) b[i] = mine[4 + i];
  for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(mine[6 + i]);
  if constexpr (kProduct == Product::kBf16) mma_bf16(d, a, b);
  if constexpr (kProduct == Product::kFp16) mma_fp16(d, a, b);
  if constexpr (kProduct == Product::kTf32) mma_tf32(d, a, b);
  for (int i = 0; i < 4; ++i) output[(blockIdx.x * kLanes + threadIdx.x) * 4 + i] = d[i];
}

// input: the number of bytes of each lane, then 16 bytes of data per lane. Lanes copy `size` bytes each.
template <int kSize>
__global__ void copy_async(const uint32_t* input, uint32_t* output) {
  IK_SHARED(uint4, memory, [kLanes]);
  const int lane = threadIdx.x;
  const uint32_t mine = smem_u32(memory) + 16 * lane;
  for (int i = 0; i < 4; ++i) sts32(mine + 4 * i, 0xffffffffu);
  __syncwarp();
  const uint32_t* data = input + kLanes + 4 * lane;
  const int bytes = static_cast<int>(input[lane]);
  if constexpr (kSize == 4) cp_async4(mine, data, bytes);
  if constexpr (kSize == 8) cp_async8(mine, data, bytes);
  if constexpr (kSize == 16) cp_async16(mine, data, bytes);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  for (int i = 0; i < 4; ++i) output[4 * lane + i] = lds32(mine + 4 * i);
}

// input: three words per lane, any bits. output: one word per lane and operation.
__global__ void arithmetic(const uint32_t* input, uint32_t* output) {
  const int lane = blockIdx.x * kLanes + threadIdx.x;
  const int lanes = gridDim.x * kLanes;
  const uint32_t a = input[3 * lane];
  const uint32_t b = input[3 * lane + 1];
  const uint32_t c = input[3 * lane + 2];
  const float2 halves = unpack_fp16(a);
  const uint32_t results[] = {bf2_max(a, b),
                              h2_max(a, b),
                              bf2_max0(a),
                              h2_max0(a),
                              bf2_fma(a, b, c),
                              h2_fma(a, b, c),
                              to_tf32(__uint_as_float(a)),
                              pack_bf16(__uint_as_float(a), __uint_as_float(b)),
                              pack_fp16(__uint_as_float(a), __uint_as_float(b)),
                              pack_bf16(unpack_bf16(a).x, unpack_bf16(a).y),
                              __float_as_uint(halves.x),
                              __float_as_uint(halves.y)};
  for (int i = 0; i < static_cast<int>(sizeof(results) / sizeof(results[0])); ++i) {
    output[i * lanes + lane] = results[i];
  }
}

// input: one word per lane.
__global__ void exchange(const uint32_t* input, uint32_t* output) {
  constexpr uint32_t kAll = 0xffffffffu;
  const int lane = threadIdx.x;
  const uint32_t v = input[lane];
  const uint32_t results[] = {__shfl_xor_sync(kAll, v, 5),     __shfl_xor_sync(kAll, v, 1, 4),
                              __shfl_sync(kAll, v, lane / 4),  __shfl_sync(kAll, v, 3, 8),
                              __shfl_down_sync(kAll, v, 7),    __shfl_up_sync(kAll, v, 3),
                              __shfl_down_sync(kAll, v, 2, 8), __ballot_sync(kAll, static_cast<int>(v & 1))};
  for (int i = 0; i < static_cast<int>(sizeof(results) / sizeof(results[0])); ++i)
    output[i * kLanes + lane] = results[i];
}

template <typename Kernel, typename Output>
void launch(Kernel kernel, const Request& request, int blocks) {
  IK_LAUNCH(kernel, dim3(blocks), dim3(kLanes), 0, request.context, static_cast<const uint32_t*>(request.input),
            static_cast<Output*>(request.output));
}

void run_load_matrices(const Request& request) {
  const int matrices = request.numbers.at(0);
  const bool transpose = request.numbers.at(1) != 0;
  using Kernel = void (*)(const uint32_t*, uint32_t*);
  const Kernel kernels[2][2] = {{load_matrices<2, false>, load_matrices<2, true>},
                                {load_matrices<4, false>, load_matrices<4, true>}};
  launch<Kernel, uint32_t>(kernels[matrices == 4][transpose], request, 1);
}

void run_multiply(const Request& request) {
  using Kernel = void (*)(const uint32_t*, float*);
  const Kernel kernels[] = {multiply<Product::kBf16>, multiply<Product::kFp16>, multiply<Product::kTf32>};
  launch<Kernel, float>(kernels[request.numbers.at(0)], request, request.numbers.at(1));
}

void run_copy_async(const Request& request) {
  using Kernel = void (*)(const uint32_t*, uint32_t*);
  const int size = request.numbers.at(0);
  launch<Kernel, uint32_t>(size == 4 ? copy_async<4> : size == 8 ? copy_async<8> : copy_async<16>, request, 1);
}

}  // namespace

bool run(const Request& request) {
  using Kernel = void (*)(const uint32_t*, uint32_t*);
  if (request.name == "load_matrices") {
    run_load_matrices(request);
  } else if (request.name == "multiply") {
    run_multiply(request);
  } else if (request.name == "copy_async") {
    run_copy_async(request);
  } else if (request.name == "arithmetic") {
    launch<Kernel, uint32_t>(arithmetic, request, request.numbers.at(0));
  } else if (request.name == "exchange") {
    launch<Kernel, uint32_t>(exchange, request, 1);
  } else {
    return false;
  }
  return true;
}

}  // namespace ik::conformance
