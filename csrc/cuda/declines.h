// Which calls the CUDA kernels do not take, asked before anything runs.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace ik::cuda {

// The reason why `op` does not run on these shapes, or an empty string. A shape is N, C, H, W, K, R, S, stride,
// padding and dilation (height, width each); asymmetric_pair has two, the second after the first. dtype is "float32",
// "float64", "bfloat16" or "float16"; sm is the compute capability: 80, 90, ...
std::string declines(std::string op, std::string dtype, std::vector<int64_t> shapes, int64_t sm);

}  // namespace ik::cuda
