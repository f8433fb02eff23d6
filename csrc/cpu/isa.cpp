#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ik::cpu {
namespace {

constexpr int kIsaCount = 5;
const char* const kNames[kIsaCount] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};

#if defined(__x86_64__)
bool has(uint32_t value, uint32_t bits) { return (value & bits) == bits; }

#if defined(IK_EMULATE_AMX)
bool can_use_tiles(uint32_t, uint32_t) { return true; }  // cpu/amx/emulated_tiles.h
#else
// Tile data must be requested once per process, before any thread uses it.
bool can_use_tiles(uint32_t states, uint32_t features) {
  constexpr uint32_t kTiles = 0x60000, kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if (!has(states, kTiles) || !has(features, kAmxBf16 | kAmxTile)) return false;
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

Isa detect() {
  constexpr uint32_t kXmmYmm = 0x6, kZmm = 0xe0, kBf16 = 1u << 5;
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(1, 0, &eax, &ebx, &ecx, &edx)) return Isa::kPortable;
  if (!has(ecx, bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C)) return Isa::kPortable;
  uint32_t states, high;
  __asm__ volatile("xgetbv" : "=a"(states), "=d"(high) : "c"(0));
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return Isa::kPortable;
  if (!has(states, kXmmYmm) || !has(ebx, bit_AVX2)) return Isa::kPortable;
  if (!has(states, kZmm) || !has(ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ)) return Isa::kAvx2;
  const uint32_t features = edx;
  if (!__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) || !has(eax, kBf16)) return Isa::kAvx512;
  return can_use_tiles(states, features) ? Isa::kAmx : Isa::kAvx512Bf16;
}
#else
Isa detect() { return Isa::kPortable; }
#endif

void check_runs_here(Isa isa, const char* origin) {
  if (static_cast<int>(isa) > static_cast<int>(best_isa()))
    throw std::runtime_error(std::string(origin) + " asks for the instruction set " + isa_name(isa) +
                             ", but the best this machine can run is " + isa_name(best_isa()));
}

Isa initial_isa() {
  const char* wanted = std::getenv("IK_CPU_ISA");
  if (!wanted || !*wanted) return best_isa();
  const Isa isa = isa_from_name(wanted);
  check_runs_here(isa, "IK_CPU_ISA");
  return isa;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> value{initial_isa()};
  return value;
}

}  // namespace

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

Isa isa() { return current().load(std::memory_order_relaxed); }

void set_isa(Isa isa) {
  check_runs_here(isa, "set_isa");
  current().store(isa, std::memory_order_relaxed);
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa isa_from_name(const std::string& name) {
  for (int i = 0; i < kIsaCount; i++) {
    if (name == kNames[i]) return static_cast<Isa>(i);
  }
  throw std::runtime_error("the instruction set must be portable, avx2, avx512, avx512bf16 or amx, got '" + name + "'");
}

}  // namespace ik::cpu
