#if defined(__x86_64__)
#define IK_ISA avx512
#include "cpu/label_smoothing_kernels.h"

namespace ik::cpu::avx512 {

const LabelSmoothingTable& label_smoothing_table(DType dtype) {
  static constexpr LabelSmoothingTable kTables[] = {
      IK_LABEL_SMOOTHING_TABLE(float, "avx512_f32"),
      IK_LABEL_SMOOTHING_TABLE(double, "avx512_f64"),
      IK_LABEL_SMOOTHING_TABLE(Bf16, "avx512_bf16"),
      IK_LABEL_SMOOTHING_TABLE(F16, "avx512_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::avx512
#endif
