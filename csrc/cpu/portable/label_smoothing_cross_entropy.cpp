#define IK_ISA portable
#include "cpu/label_smoothing_kernels.h"

namespace ik::cpu::portable {

const LabelSmoothingTable& label_smoothing_table(DType dtype) {
  static constexpr LabelSmoothingTable kTables[] = {
      IK_LABEL_SMOOTHING_TABLE(float, "portable_f32"),
      IK_LABEL_SMOOTHING_TABLE(double, "portable_f64"),
      IK_LABEL_SMOOTHING_TABLE(Bf16, "portable_bf16"),
      IK_LABEL_SMOOTHING_TABLE(F16, "portable_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::portable
