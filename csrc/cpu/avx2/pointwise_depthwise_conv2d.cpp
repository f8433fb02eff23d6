#if defined(__x86_64__)
#define IK_ISA avx2
#include "cpu/pointwise_depthwise_kernels.h"

namespace ik::cpu::avx2 {

const DepthwiseTable& depthwise_table(DType dtype) {
  static constexpr DepthwiseTable kTables[] = {
      IK_DEPTHWISE_TABLE(float, "avx2_f32"),
      IK_DEPTHWISE_TABLE(double, "avx2_f64"),
      IK_DEPTHWISE_TABLE(Bf16, "avx2_bf16"),
      IK_DEPTHWISE_TABLE(F16, "avx2_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::avx2
#endif
