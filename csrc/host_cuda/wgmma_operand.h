// A wgmma operand in shared memory, as its descriptor lays it out.
#pragma once
#include <cstdint>
#include <vector>

#include "host_cuda/clocks.h"
#include "host_cuda/report.h"
#include "host_cuda/runtime.h"

namespace ik::host_cuda {

struct WgmmaOperand {
  uint64_t descriptor;
  int rows;        // along M or N
  bool transpose;  // M or N is contiguous, not K
  Operand type;
};

void check_operand(const WgmmaOperand& operand, const Accessor& accessor, const Site& site);
std::vector<double> load_rows(const WgmmaOperand& operand);     // [rows][16]
std::vector<double> load_columns(const WgmmaOperand& operand);  // [16][rows]

}  // namespace ik::host_cuda
