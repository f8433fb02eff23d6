// Switching between stacks, in a few instructions where we know how, else through ucontext.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace ik::host_cuda {

class StackContext {
 public:
  // The first switch_to enters `entry`, which must never return.
  void prepare(char* stack, size_t bytes, void (*entry)());
  // Saves the caller here and continues `to`.
  void switch_to(StackContext& to);

 private:
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

}  // namespace ik::host_cuda
