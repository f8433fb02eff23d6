// Accesses to memory: order, bounds, initialisation, alignment. The marked line is the one to be reported.
#include "cuda/launch.h"
#include "cuda/shared_limit.h"
#include "defects.h"

namespace ik::cuda {
namespace {

template <bool kDefect>
__global__ void missing_barrier(Arguments a) {
  IK_SHARED(float, s, [256]);
  s[threadIdx.x] = a.x[threadIdx.x];
  if (!kDefect) __syncthreads();
  a.y[threadIdx.x] = s[threadIdx.x ^ 32];  // reported: shared race
}

template <bool kDefect>
__global__ void overwritten_too_early(Arguments a) {
  IK_SHARED(float, s, [256]);
  s[threadIdx.x] = a.x[threadIdx.x];
  __syncthreads();
  const float v = s[threadIdx.x ^ 32];
  if (!kDefect) __syncthreads();
  s[threadIdx.x] = v + 1;  // reported: shared race
  a.y[threadIdx.x] = s[threadIdx.x];
}

template <bool kDefect>
__global__ void missing_syncwarp(Arguments a) {
  IK_SHARED(float, s, [256]);
  s[threadIdx.x] = a.x[threadIdx.x];
  if (!kDefect) __syncwarp();
  a.y[threadIdx.x] = s[threadIdx.x ^ 1];  // reported: shared race
}

template <bool kDefect>
__global__ void shared_out_of_bounds(Arguments a) {
  IK_DYNAMIC_SHARED(unused);
  IK_SHARED(float, s, [256]);
  float* const end = s + (kDefect ? 256 : 255);
  if (threadIdx.x == 255) *end = a.x[0];  // reported: shared out of bounds
  __syncthreads();
  a.y[threadIdx.x] = s[255] + (unused ? 0 : 1);
}

template <bool kDefect>
__global__ void array_index(Arguments a) {
  float v[4] = {0, 1, 2, 3};
  const int i = kDefect ? threadIdx.x / 63 : threadIdx.x / 64;
  a.y[threadIdx.x] = v[i];  // reported: array index
}

template <bool kDefect>
__global__ void global_read_out_of_bounds(Arguments a) {
  const int i = threadIdx.x + (kDefect ? 1 : 0);
  const float v = a.x[i];  // reported: global out of bounds
  a.y[threadIdx.x] = v;
}

template <bool kDefect>
__global__ void global_write_out_of_bounds(Arguments a) {
  const int i = static_cast<int>(threadIdx.x) - (kDefect ? 1 : 0);
  a.y[i] = 1;  // reported: global out of bounds
}

template <bool kDefect>
__global__ void write_to_input(Arguments a) {
  a.y[threadIdx.x] = a.x[threadIdx.x];
  if (kDefect) const_cast<float*>(a.x)[threadIdx.x] = 0;  // reported: write to an input
}

template <bool kDefect>
__global__ void uninitialised_shared(Arguments a) {
  IK_SHARED(float, s, [256]);
  if (!kDefect || threadIdx.x < 255) s[threadIdx.x] = a.x[threadIdx.x];
  __syncthreads();
  a.y[threadIdx.x] = s[threadIdx.x];  // reported: uninitialised shared read
}

template <bool kDefect>
__global__ void uninitialised_scratch(Arguments a) {
  if (!kDefect) a.scratch[threadIdx.x] = 1;
  a.y[threadIdx.x] = a.scratch[threadIdx.x];  // reported: uninitialised global read
}

template <bool kDefect>
__global__ void written_twice(Arguments a) {
  a.y[threadIdx.x] = 1;
  __syncthreads();
  if (kDefect && threadIdx.x == 0) a.y[7] = 2;  // reported: output written twice
}

template <bool kDefect>
__global__ void never_written(Arguments a) {  // reported without line: output not written
  if (!kDefect || threadIdx.x != 100) a.y[threadIdx.x] = 1;
}

template <bool kDefect>
__global__ void between_rows(Arguments a) {
  a.y[threadIdx.x] = 1;
  if (kDefect && threadIdx.x == 0) a.rows[8] = 1;  // reported: write between rows
}

template <bool kDefect>
__global__ void updated_twice(Arguments a) {
  a.y[threadIdx.x] = a.updated[threadIdx.x];
  a.updated[threadIdx.x] += 1;
  if (kDefect) a.updated[threadIdx.x] += 1;  // reported: output written twice
}

template <bool kDefect>
__global__ void updated_in_part(Arguments a) {
  a.y[threadIdx.x] = a.updated[threadIdx.x];  // reported without line: output not written
  if (!kDefect || threadIdx.x != 7) a.updated[threadIdx.x] += 1;
}

template <bool kDefect>
__global__ void updated_by_another(Arguments a) {
  a.y[threadIdx.x] = a.updated[threadIdx.x];
  a.updated[kDefect ? threadIdx.x ^ 64 : threadIdx.x] = 1;  // reported: global race
}

template <bool kDefect>
__global__ void scratch_race_of_threads(Arguments a) {
  a.scratch[threadIdx.x] = 1;
  if (!kDefect) __syncthreads();
  a.y[threadIdx.x] = a.scratch[threadIdx.x ^ 64];  // reported: global race
}

template <bool kDefect>
__global__ void scratch_race_of_blocks(Arguments a) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  a.scratch[i] = 1;                               // reported: global race
  a.y[i] = a.scratch[kDefect ? threadIdx.x : i];  // reported: global race
}

template <bool kDefect>
__global__ void misaligned_pointer(Arguments a) {
  const float* from = a.x + 4 * (threadIdx.x % 32) + (kDefect ? 1 : 0);
  const float4 v = *reinterpret_cast<const float4*>(from);  // reported: misaligned
  a.y[threadIdx.x] = v.x;
}

template <bool kDefect>
__global__ void misaligned_helper(Arguments a) {
  const float* from = a.x + 4 * (threadIdx.x % 32) + (kDefect ? 2 : 0);
  const uint4 v = ldg128(from);  // reported: misaligned
  a.y[threadIdx.x] = __uint_as_float(v.x);
}

__global__ void fill_scratch(Arguments a) { a.scratch[threadIdx.x] = 1; }
template <bool kDefect>
__global__ void no_wait_for_previous_launch_kernel(Arguments a) {
  if (!kDefect) grid_dependency_wait();
  a.y[threadIdx.x] = a.scratch[threadIdx.x];  // reported: global race
}
void launch_overlapped(bool defect, const Arguments& a, const Context& context) {
  IK_LAUNCH(fill_scratch, dim3(1), dim3(256), 0, context, a);
  const auto kernel = defect ? no_wait_for_previous_launch_kernel<true> : no_wait_for_previous_launch_kernel<false>;
  IK_LAUNCH_OVERLAPPED(kernel, 1, dim3(1), dim3(256), 0, context, a);
}

template <bool kDefect>
__global__ void shared_beyond_the_limit_kernel(Arguments a) {
  a.y[threadIdx.x] = a.x[threadIdx.x];  // reported without line: launch
}
void launch_shared_beyond_the_limit(bool defect, const Arguments& a, const Context& context) {
  const size_t limit = static_cast<size_t>(shared_limit(context.sm));
  const auto kernel = defect ? shared_beyond_the_limit_kernel<true> : shared_beyond_the_limit_kernel<false>;
  IK_LAUNCH(kernel, dim3(1), dim3(256), defect ? limit + 16 : limit, context, a);
}

template <bool kDefect>
__global__ void static_beside_dynamic_shared_kernel(Arguments a) {
  IK_SHARED(float, s, [256]);  // reported without line: shared memory
  s[threadIdx.x] = a.x[threadIdx.x];
  a.y[threadIdx.x] = s[threadIdx.x];
}
void launch_static_beside_dynamic_shared(bool defect, const Arguments& a, const Context& context) {
  const size_t left = static_cast<size_t>(shared_limit(context.sm)) - 256 * sizeof(float);
  const auto kernel = defect ? static_beside_dynamic_shared_kernel<true> : static_beside_dynamic_shared_kernel<false>;
  IK_LAUNCH(kernel, dim3(1), dim3(256), defect ? left + 16 : left, context, a);
}

}  // namespace

std::vector<DefectCase> memory_defects() {
  return {
      IK_DEFECT(missing_barrier, 1, 1, 256),
      IK_DEFECT(overwritten_too_early, 1, 1, 256),
      IK_DEFECT(missing_syncwarp, 1, 1, 256),
      IK_DEFECT(shared_out_of_bounds, 1, 1, 256),
      IK_DEFECT(array_index, 1, 1, 256),
      IK_DEFECT(global_read_out_of_bounds, 1, 1, 256),
      IK_DEFECT(global_write_out_of_bounds, 1, 1, 256),
      IK_DEFECT(write_to_input, 1, 1, 256),
      IK_DEFECT(uninitialised_shared, 1, 1, 256),
      IK_DEFECT(uninitialised_scratch, 1, 1, 256),
      IK_DEFECT(written_twice, 1, 1, 256),
      IK_DEFECT(never_written, 1, 1, 256),
      IK_DEFECT(between_rows, 1, 1, 256),
      IK_DEFECT(updated_twice, 1, 1, 256),
      IK_DEFECT(updated_in_part, 1, 1, 256),
      IK_DEFECT(updated_by_another, 1, 1, 256),
      IK_DEFECT(scratch_race_of_threads, 1, 1, 256),
      IK_DEFECT(scratch_race_of_blocks, 1, 2, 128),
      IK_DEFECT(misaligned_pointer, 1, 1, 256),
      IK_DEFECT(misaligned_helper, 1, 1, 256),
      {"no_wait_for_previous_launch", launch_overlapped},
      {"shared_beyond_the_limit", launch_shared_beyond_the_limit},
      {"static_beside_dynamic_shared", launch_static_beside_dynamic_shared},
  };
}

}  // namespace ik::cuda
