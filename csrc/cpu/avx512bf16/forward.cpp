#if defined(__x86_64__)
#define IK_ISA avx512bf16
#include "cpu/forward_kernels.h"

namespace ik::cpu::avx512bf16 {

const KernelTable& kernel_table_bf16() {
  static constexpr KernelTable kTable = IK_KERNEL_TABLE(Bf16, 25, "avx512bf16_bf16");
  return kTable;
}

}  // namespace ik::cpu::avx512bf16
#endif
