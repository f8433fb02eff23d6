// The dense convolution as a step that other operators use too.
#pragma once
#include "cpu/kernel_table.h"

namespace ik::cpu {

void run_conv(const KernelTable& table, const ConvTask& task, int threads);

}  // namespace ik::cpu
