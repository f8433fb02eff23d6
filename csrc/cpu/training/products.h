// The weight gradient over the pool: what conv2d_bn_act and separable_conv2d backward share.
#pragma once
#include "cpu/training/kernels.h"

namespace ik::cpu::training {

// grad_weight of args; cut into chunks of pixels and panels of output channels that depend on the shape alone.
void weight_gradient(const Kernels& table, const WeightGradient& args, void* grad_weight);

}  // namespace ik::cpu::training
