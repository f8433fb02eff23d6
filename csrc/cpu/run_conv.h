// The dense convolution as a step that other operators use too.
#pragma once
#include "conv2d_bn_act.h"
#include "cpu/kernel_table.h"

namespace ik::cpu {

// All panels of a weight; conv_weight_bytes in all.
void pack_conv(const KernelTable& table, const Geometry& geometry, const WeightView& weight, void* packed);

void run_conv(const KernelTable& table, const ConvTask& task, int threads);

// The same with a weight that is not packed yet; task.weight is not read.
void run_unpacked_conv(const KernelTable& table, const ConvTask& task, const WeightView& weight, int threads);

// conv2d_forward with a weight that is not packed; args.packed_weight is not read.
void conv2d_forward_unpacked(const Conv2dForward& args, const WeightView& weight);

}  // namespace ik::cpu
