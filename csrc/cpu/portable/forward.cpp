#define IK_ISA portable
#include "cpu/forward_kernels.h"

namespace ik::cpu::portable {

const KernelTable& kernel_table(DType dtype) {
  static constexpr KernelTable kTables[] = {
      IK_KERNEL_TABLE(float, 0, "portable_f32"),
      IK_KERNEL_TABLE(double, 1, "portable_f64"),
      IK_KERNEL_TABLE(Bf16, 2, "portable_bf16"),
      IK_KERNEL_TABLE(F16, 3, "portable_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::portable
