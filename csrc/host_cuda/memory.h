// Every access of a kernel to memory ends here: bounds, races, uninitialised reads.
#pragma once
#include <cstddef>
#include <cstdint>

#include "host_cuda/clocks.h"
#include "host_cuda/report.h"
#include "host_cuda/runtime.h"

namespace ik::host_cuda {

struct Block;

// ---- shared memory: 32-bit addresses hold the block's rank in the cluster and the offset ----
constexpr size_t kArenaBytes = size_t{1} << 20;  // address space of one block; what is not shared memory faults
constexpr size_t kArenaMapped = size_t{256} << 10;
constexpr uint32_t kFirstAddress = 0x400;  // the hardware keeps the first KiB to itself

char* arena_of_rank(int rank);
char* shared_begin(int rank);
// Null outside shared memory, else the block, whose shared memory begins `offset` bytes before the pointer.
Block* block_of(const void* pointer, size_t* offset);
void* shared_pointer(uint32_t address);
constexpr uint32_t make_address(int rank, size_t offset) {
  return static_cast<uint32_t>(rank) << 24 | static_cast<uint32_t>(offset + kFirstAddress);
}
constexpr int rank_of(uint32_t address) { return static_cast<int>(address >> 24); }
constexpr uint32_t within_block(uint32_t address) { return address & 0xffffff; }

// ---- checks; `bytes` may span several elements ----
void check_alignment(const void* pointer, size_t alignment, const char* what, const Site& site);
// An access of the running thread.
void check_access(const void* pointer, size_t bytes, bool writes, const Site& site);
// Of somebody else, for the running thread. False: out of bounds, do not touch it.
bool check_shared(uint32_t address, size_t bytes, bool writes, const Accessor& accessor, const Site& site);
// An access of the running thread, or of a copy that it started, to announced buffers.
bool check_global(const void* pointer, size_t bytes, bool writes, const Site& site);

Accessor running_thread_accessor();

}  // namespace ik::host_cuda
