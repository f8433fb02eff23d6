#define IK_ISA portable
#include "cpu/run_program_kernels.h"

namespace ik::cpu::portable {

const ProgramTable& program_table(DType dtype) {
  static constexpr ProgramTable kTables[] = {
      IK_PROGRAM_TABLE(float, "portable_f32"),
      IK_PROGRAM_TABLE(double, "portable_f64"),
      IK_PROGRAM_TABLE(Bf16, "portable_bf16"),
      IK_PROGRAM_TABLE(F16, "portable_f16"),
  };
  return kTables[static_cast<int>(dtype)];
}

}  // namespace ik::cpu::portable
