// The instruction set of this process, decided once: the best that CPUID (and the kernel, for AMX) allows, lowered by
// the environment variable IK_CPU_ISA=portable|avx2|avx512|avx512bf16|amx or by set_isa().
//
// Sources in cpu/portable, cpu/avx2, cpu/avx512, cpu/avx512bf16 and cpu/amx are compiled with the flags that
// isa_flags.txt names for the folder (none of them off x86-64, where all but portable compile to nothing); everything
// else without extra flags.
#pragma once
#include <string>

namespace ik::cpu {

enum class Isa : int { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };

Isa best_isa();     // what the machine can run
Isa isa();          // what is in force; throws std::runtime_error if IK_CPU_ISA names none or more than best_isa()
void set_isa(Isa);  // throws std::runtime_error above best_isa()
const char* isa_name(Isa);
Isa isa_from_name(const std::string& name);  // throws std::runtime_error for a name that is none

}  // namespace ik::cpu

// table(dtype) of the instruction set in force; those with products of bfloat16 have the table of avx512.
#if defined(__x86_64__)
#define IK_TABLE_BY_ISA(table, dtype)                                 \
  (::ik::cpu::isa() >= ::ik::cpu::Isa::kAvx512 ? avx512::table(dtype) \
   : ::ik::cpu::isa() == ::ik::cpu::Isa::kAvx2 ? avx2::table(dtype)   \
                                               : portable::table(dtype))
#else
#define IK_TABLE_BY_ISA(table, dtype) portable::table(dtype)
#endif
