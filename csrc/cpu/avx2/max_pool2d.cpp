#if defined(__x86_64__)
#define IK_ISA avx2
#include "cpu/max_pool2d_kernels.h"

namespace ik::cpu::avx2 {

const MaxPoolTable& max_pool2d_table(DType dtype) {
  static constexpr MaxPoolTable kTables[] = {
      IK_MAX_POOL_TABLE(float, "avx2_f32"),
      IK_MAX_POOL_TABLE(double, "avx2_f64"),
      IK_MAX_POOL_TABLE(Bf16, "avx2_bf16"),
      IK_MAX_POOL_TABLE(F16, "avx2_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::avx2
#endif
