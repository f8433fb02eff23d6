// The dense convolution as a step that other operators use too.
#pragma once
#include "conv2d_bn_act.h"
#include "cpu/kernel_table.h"

namespace ik::cpu {

// All panels of a weight; kernels.weight_bytes in all.
void pack_conv(const KernelTable& table, const ConvKernels& kernels, const Geometry& geometry, const WeightView& weight,
               void* packed);

// By those of conv_kernels, with a packed weight.
void run_conv(const KernelTable& table, const ConvKernels& kernels, const ConvTask& task, int threads);

// Those for a weight that is packed for one use. The choice, and so the bits, depend on `images`.
const ConvKernels& unpacked_conv_kernels(const KernelTable& table, const Geometry& geometry, int64_t images);

// The same as run_conv by any kernels, with a weight that is not packed yet; task.weight is not read.
void run_unpacked_conv(const KernelTable& table, const ConvKernels& kernels, const ConvTask& task,
                       const WeightView& weight, int threads);

// conv2d_forward with a weight that is not packed, for training: bits depend on the batch. args.packed_weight is not
// read.
void conv2d_forward_unpacked(const Conv2dForward& args, const WeightView& weight);

}  // namespace ik::cpu
