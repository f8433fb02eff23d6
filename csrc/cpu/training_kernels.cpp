#include "cpu/isa.h"
#include "cpu/training/kernels.h"

namespace ik::cpu::training {

const Kernels& kernels(DType dtype) {
#if defined(__x86_64__)
  const Isa level = isa();
  if (level == Isa::kAmx) return kernels_amx(dtype);
  if (level == Isa::kAvx512Bf16) return kernels_avx512bf16(dtype);
  if (level == Isa::kAvx512) return kernels_avx512(dtype);
  if (level == Isa::kAvx2) return kernels_avx2(dtype);
#endif
  return kernels_portable(dtype);
}

}  // namespace ik::cpu::training
