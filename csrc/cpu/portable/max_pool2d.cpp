#define IK_ISA portable
#include "cpu/max_pool2d_kernels.h"

namespace ik::cpu::portable {

const MaxPoolTable& max_pool2d_table(DType dtype) {
  static constexpr MaxPoolTable kTables[] = {
      IK_MAX_POOL_TABLE(float, "portable_f32"),
      IK_MAX_POOL_TABLE(double, "portable_f64"),
      IK_MAX_POOL_TABLE(Bf16, "portable_bf16"),
      IK_MAX_POOL_TABLE(F16, "portable_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::portable
