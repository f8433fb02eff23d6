// Memory of the tensors that operators return, kept when a tensor dies and handed to the next one. malloc gives large
// blocks back to the operating system, which hands them out again page by page, cleared: that costs more than many a
// layer takes to fill them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ik::cpu {

// At least `bytes` bytes on a 64-byte boundary, from any thread; null where the system has no more.
void* take_memory(size_t bytes);
// What take_memory() returned, from any thread.
void give_memory(void* data);

struct MemoryUse {
  int64_t taken;  // bytes, with what the rounding adds
  int64_t kept;   // bytes that wait to be taken
};
MemoryUse memory_use();
// Gives the system what nobody has taken, in whole segments.
void release_memory();

}  // namespace ik::cpu
