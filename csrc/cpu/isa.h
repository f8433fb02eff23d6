// The instruction set of this process, decided once: the best that CPUID (and the kernel, for AMX) allows, lowered by
// the environment variable IK_CPU_ISA=portable|avx2|avx512|amx or by set_isa().
#pragma once
#include <string>

namespace ik::cpu {

enum class Isa : int { kPortable, kAvx2, kAvx512, kAmx };

Isa best_isa();     // what the machine can run
Isa isa();          // what is in force
void set_isa(Isa);  // throws std::runtime_error above best_isa()
const char* isa_name(Isa);
Isa isa_from_name(const std::string& name);  // throws std::runtime_error for a name it does not know

}  // namespace ik::cpu
