#if defined(__x86_64__)
#define IK_ISA avx2
#include "cpu/label_smoothing_kernels.h"

namespace ik::cpu::avx2 {

const LabelSmoothingTable& label_smoothing_table(DType dtype) {
  static constexpr LabelSmoothingTable kTables[] = {
      IK_LABEL_SMOOTHING_TABLE(float, "avx2_f32"),
      IK_LABEL_SMOOTHING_TABLE(double, "avx2_f64"),
      IK_LABEL_SMOOTHING_TABLE(Bf16, "avx2_bf16"),
      IK_LABEL_SMOOTHING_TABLE(F16, "avx2_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::avx2
#endif
