#if defined(__x86_64__)
#define IK_ISA avx2
#include "cpu/forward_kernels.h"

namespace ik::cpu::avx2 {

const KernelTable& kernel_table(DType dtype) {
  static constexpr KernelTable kTables[] = {
      IK_KERNEL_TABLE(float, 10, "avx2_f32"),
      IK_KERNEL_TABLE(double, 11, "avx2_f64"),
      IK_KERNEL_TABLE(Bf16, 12, "avx2_bf16"),
      IK_KERNEL_TABLE(F16, 13, "avx2_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::avx2
#endif
