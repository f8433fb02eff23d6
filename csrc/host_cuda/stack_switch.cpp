#include "host_cuda/stack_switch.h"

namespace ik::host_cuda {

#if defined(__x86_64__)

asm(R"(
.text
.globl ik_switch_stack
.type ik_switch_stack, @function
ik_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ik_switch_stack, .-ik_switch_stack
)");
extern "C" void ik_switch_stack(void** save, void* to);

constexpr int kSavedRegisters = 6;

void StackContext::prepare(char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes - 64);
  *--top = nullptr;  // where entry would return to; keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  stack_pointer_ = top;
}

void StackContext::switch_to(StackContext& to) { ik_switch_stack(&stack_pointer_, to.stack_pointer_); }

#else

void StackContext::prepare(char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

void StackContext::switch_to(StackContext& to) { swapcontext(&context_, &to.context_); }

#endif

}  // namespace ik::host_cuda
