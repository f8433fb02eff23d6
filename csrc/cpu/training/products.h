// The weight gradient over the pool: what conv2d_bn_act and separable_conv2d backward share.
#pragma once
#include "cpu/training/kernels.h"

namespace ik::cpu::training {

// grad_weight of args, `wide` in the accumulation type. Sums over pixels are cut by the shape alone; the threads share
// channels, which changes no sum.
void weight_gradient(const Kernels& table, const WeightGradient& args, const WeightOutput& grad_weight, bool wide);

}  // namespace ik::cpu::training
