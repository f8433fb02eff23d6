// The functions that the sanitizers' instrumentation calls: every access of a kernel's own code comes through here.
#include <cstddef>
#include <cstdint>

#include "host_cuda/machine.h"
#include "host_cuda/memory.h"

namespace ik::host_cuda {
namespace {

inline __attribute__((always_inline)) void on_access(void* pointer, size_t bytes, bool writes, size_t alignment,
                                                     void* caller) {
  if (!running) return;
  const uintptr_t distance = reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(running->stack);
  if (distance < kStackBytes) return;
  const Site site = Site::of_return_address(caller);
  check_alignment(pointer, alignment, "the access", site);
  check_access(pointer, bytes, writes, site);
}

}  // namespace
}  // namespace ik::host_cuda

#define IK_HOOKS(bytes)                                                                                               \
  void __tsan_read##bytes(void* p) { ik::host_cuda::on_access(p, bytes, false, bytes, __builtin_return_address(0)); } \
  void __tsan_write##bytes(void* p) { ik::host_cuda::on_access(p, bytes, true, bytes, __builtin_return_address(0)); } \
  void __tsan_unaligned_read##bytes(void* p) {                                                                        \
    ik::host_cuda::on_access(p, bytes, false, 1, __builtin_return_address(0));                                        \
  }                                                                                                                   \
  void __tsan_unaligned_write##bytes(void* p) {                                                                       \
    ik::host_cuda::on_access(p, bytes, true, 1, __builtin_return_address(0));                                         \
  }

extern "C" {
IK_HOOKS(1)
IK_HOOKS(2)
IK_HOOKS(4)
IK_HOOKS(8)
IK_HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) {
  ik::host_cuda::on_access(p, bytes, false, 1, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  ik::host_cuda::on_access(p, bytes, true, 1, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
// Guards of the launchers' own static variables.
char __tsan_atomic8_load(const volatile char* p, int) { return *p; }

// What the undefined-behaviour instrumentation passes.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct TypeMismatch {
  SourceLocation at;
  void* type;
  uint8_t log_alignment, kind;
};
struct OutOfBounds {
  SourceLocation at;
  void *array_type, *index_type;
};
void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t pointer) {
  if (!ik::host_cuda::running) return;
  const ik::host_cuda::Site site(data->at.file, static_cast<int>(data->at.line));
  ik::host_cuda::check_alignment(reinterpret_cast<void*>(pointer), size_t{1} << data->log_alignment, "the type", site);
}
void __ubsan_handle_out_of_bounds(OutOfBounds* data, uintptr_t index) {
  if (!ik::host_cuda::running) return;
  const ik::host_cuda::Site site(data->at.file, static_cast<int>(data->at.line));
  ik::host_cuda::report_fatal("array index", site, "%lld", static_cast<long long>(index));
}
}
