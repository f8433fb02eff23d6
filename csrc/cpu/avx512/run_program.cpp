#if defined(__x86_64__)
#define IK_ISA avx512
#include "cpu/run_program_kernels.h"

namespace ik::cpu::avx512 {

const ProgramTable& program_table(DType dtype) {
  static constexpr ProgramTable kTables[] = {
      IK_PROGRAM_TABLE(float, "avx512_f32"),
      IK_PROGRAM_TABLE(double, "avx512_f64"),
      IK_PROGRAM_TABLE(Bf16, "avx512_bf16"),
      IK_PROGRAM_TABLE(F16, "avx512_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::avx512
#endif
