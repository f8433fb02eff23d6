#define IK_ISA portable
#include "cpu/pointwise_depthwise_kernels.h"

namespace ik::cpu::portable {

const DepthwiseTable& depthwise_table(DType dtype) {
  static constexpr DepthwiseTable kTables[] = {
      IK_DEPTHWISE_TABLE(float, "portable_f32"),
      IK_DEPTHWISE_TABLE(double, "portable_f64"),
      IK_DEPTHWISE_TABLE(Bf16, "portable_bf16"),
      IK_DEPTHWISE_TABLE(F16, "portable_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::portable
