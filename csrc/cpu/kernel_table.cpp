#include "cpu/kernel_table.h"

#include "cpu/isa.h"

namespace ik::cpu {

const KernelTable& kernel_table(DType dtype) {
#if defined(__x86_64__)
  const Isa level = isa();
  if (level == Isa::kAmx && dtype == DType::kBFloat16) return amx::kernel_table_bf16();
  if (level == Isa::kAvx512Bf16 && dtype == DType::kBFloat16) return avx512bf16::kernel_table_bf16();
  if (level >= Isa::kAvx512) return avx512::kernel_table(dtype);
  if (level == Isa::kAvx2) return avx2::kernel_table(dtype);
#endif
  return portable::kernel_table(dtype);
}

}  // namespace ik::cpu
