// What ran, and how often: kernels count themselves, tests and `explain` read. Names are "<op>.<direction>.<variant>",
// for instance "conv2d_bn_act.forward.cpu_amx_bf16".
#pragma once

namespace ik {

void count_kernel(const char* name);  // thread safe; `name` must be a string literal

}  // namespace ik
