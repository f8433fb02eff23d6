#include "cpu/kernel_table.h"

#include "cpu/isa.h"

namespace ik::cpu {

const KernelTable& kernel_table(DType dtype) {
#if defined(__x86_64__)
  if (isa() == Isa::kAmx && dtype == DType::kBFloat16) return amx::kernel_table_bf16();
  if (isa() == Isa::kAvx512Bf16 && dtype == DType::kBFloat16) return avx512bf16::kernel_table_bf16();
#endif
  return IK_TABLE_BY_ISA(kernel_table, dtype);
}

}  // namespace ik::cpu
