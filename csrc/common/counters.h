// What ran, and how often: kernels count themselves, tests and `explain` read. Names are "<op>.<direction>.<variant>",
// for instance "conv2d_bn_act.forward.cpu_amx_bf16".
#pragma once
#include <string>

namespace ik {

void count_kernel(const char* name);  // thread safe
std::string counted_kernels();        // one line "name=count" each
void reset_counted_kernels();

}  // namespace ik
