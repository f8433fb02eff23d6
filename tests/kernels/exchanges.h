// Kernels whose result is known and which hand data from thread to thread in every way that the primitives offer.
#pragma once
#include "cuda/context.h"

namespace ik::cuda {

// y = x, 1024 floats, by way of loads and stores of 4, 8 and 16 bytes.
void copy_by_widths(const float* x, float* y, const Context& context);
// y = x + 1, 1024 floats; one half of the block's warps reads, the other writes.
void hand_over_at_named_barriers(const float* x, float* y, const Context& context);
// Two blocks of a cluster; each block's y [4][32][32] is x, which the first block loads for both.
void multicast(const float* x, float* y, const Context& context);
// y[i] = x[1023 - i]: four blocks of a cluster read each other's shared memory and signal each other.
void reverse_across_cluster(const float* x, float* y, const Context& context);

}  // namespace ik::cuda
