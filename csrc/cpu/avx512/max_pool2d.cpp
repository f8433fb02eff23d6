#if defined(__x86_64__)
#define IK_ISA avx512
#include "cpu/max_pool2d_kernels.h"

namespace ik::cpu::avx512 {

const MaxPoolTable& max_pool2d_table(DType dtype) {
  static constexpr MaxPoolTable kTables[] = {
      IK_MAX_POOL_TABLE(float, "avx512_f32"),
      IK_MAX_POOL_TABLE(double, "avx512_f64"),
      IK_MAX_POOL_TABLE(Bf16, "avx512_bf16"),
      IK_MAX_POOL_TABLE(F16, "avx512_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::avx512
#endif
