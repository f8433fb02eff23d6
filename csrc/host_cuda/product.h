// The arithmetic of the tensor cores: products are exact, sums are float.
#pragma once
#include <cstdint>
#include <vector>

#include "host_cuda/runtime.h"

namespace ik::host_cuda {

double operand_value(uint16_t bits, Operand operand);
double tf32_value(uint32_t bits);

// d [rows][N] += a [rows][depth] b [depth][N], all row-major. The products of `kept` consecutive steps are summed
// exactly with d and then cut off to float, towards zero: hardware is specified to at least that.
void multiply(double* d, const double* a, const double* b, int rows, int N, int depth, int kept);

}  // namespace ik::host_cuda
