// Products over the pool: what conv2d_bn_act and separable_conv2d backward share.
#pragma once
#include "cpu/training/kernels.h"

namespace ik::cpu::training {

// grad_weight of args; cut into chunks of pixels and panels of output channels that depend on the shape alone.
void weight_gradient(const Kernels& table, const WeightGradient& args, void* grad_weight);

// Packs weight[k, c, tap] for all panels of c, in parallel, into the calling thread's weight buffer.
const void* pack_taps(const Kernels& table, const WeightView& weight, int64_t K, int64_t C, int64_t taps,
                      const int64_t* tap_r, const int64_t* tap_s);

}  // namespace ik::cpu::training
