#if defined(__x86_64__)
#define IK_ISA avx2
#include "cpu/run_program_kernels.h"

namespace ik::cpu::avx2 {

const ProgramTable& program_table(DType dtype) {
  static constexpr ProgramTable kTables[] = {
      IK_PROGRAM_TABLE(float, "avx2_f32"),
      IK_PROGRAM_TABLE(double, "avx2_f64"),
      IK_PROGRAM_TABLE(Bf16, "avx2_bf16"),
      IK_PROGRAM_TABLE(F16, "avx2_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::avx2
#endif
