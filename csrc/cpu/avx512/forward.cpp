#if defined(__x86_64__)
#define IK_ISA avx512
#include "cpu/forward_kernels.h"

namespace ik::cpu::avx512 {

const KernelTable& kernel_table(DType dtype) {
  static constexpr KernelTable kTables[] = {
      IK_KERNEL_TABLE(float, 20, "avx512_f32"),
      IK_KERNEL_TABLE(double, 21, "avx512_f64"),
      IK_KERNEL_TABLE(Bf16, 22, "avx512_bf16"),
      IK_KERNEL_TABLE(F16, 23, "avx512_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::avx512
#endif
