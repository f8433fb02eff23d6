#if defined(__x86_64__)
#define IK_ISA avx512
#include "cpu/pointwise_depthwise_kernels.h"

namespace ik::cpu::avx512 {

const DepthwiseTable& depthwise_table(DType dtype) {
  static constexpr DepthwiseTable kTables[] = {
      IK_DEPTHWISE_TABLE(float, "avx512_f32"),
      IK_DEPTHWISE_TABLE(double, "avx512_f64"),
      IK_DEPTHWISE_TABLE(Bf16, "avx512_bf16"),
      IK_DEPTHWISE_TABLE(F16, "avx512_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::avx512
#endif
