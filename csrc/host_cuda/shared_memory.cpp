#include <sys/mman.h>

#include <stdexcept>

#include "host_cuda/machine.h"
#include "host_cuda/memory.h"

namespace ik::host_cuda {
namespace {

// Arenas lie behind each other, aligned to their size, so that a pointer tells its rank.
constexpr int kMostBlocks = 16;

char* all_arenas() {
  static char* const arenas = [] {
    void* raw =
        mmap(nullptr, kArenaBytes * (kMostBlocks + 1), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) throw std::runtime_error("no address space for shared memory");
    const uintptr_t aligned = (reinterpret_cast<uintptr_t>(raw) + kArenaBytes - 1) / kArenaBytes * kArenaBytes;
    char* first = reinterpret_cast<char*>(aligned);
    for (int rank = 0; rank < kMostBlocks; ++rank) {
      mprotect(first + static_cast<size_t>(rank) * kArenaBytes + kArenaMapped, kArenaMapped, PROT_READ | PROT_WRITE);
    }
    return first;
  }();
  return arenas;
}

}  // namespace

char* arena_of_rank(int rank) { return all_arenas() + static_cast<size_t>(rank) * kArenaBytes; }
char* shared_begin(int rank) { return arena_of_rank(rank) + kArenaMapped + kFirstAddress; }

Block* block_of(const void* pointer, size_t* offset) {
  const size_t distance = static_cast<size_t>(static_cast<const char*>(pointer) - all_arenas());
  const size_t rank = distance / kArenaBytes;
  if (rank >= cluster->blocks.size()) return nullptr;
  Block& block = cluster->blocks[rank];
  *offset = static_cast<size_t>(static_cast<const char*>(pointer) - block.shared);  // wraps in front of it
  return &block;
}

void* shared_pointer(uint32_t address) {
  const int rank = rank_of(address) < static_cast<int>(cluster->blocks.size()) ? rank_of(address) : 0;
  return shared_begin(rank) + (within_block(address) - int64_t{kFirstAddress});
}

void* dynamic_shared() { return running->block->shared; }

// Every block of the cluster has the same layout, whoever comes to the declaration first.
void* static_shared(const void* key, size_t bytes, size_t alignment) {
  for (const auto& [known, offset] : cluster->static_shared) {
    if (known == key) return running->block->shared + offset;
  }
  constexpr size_t kLeastAlignment = 16;
  alignment = std::max(alignment, kLeastAlignment);
  const size_t offset = (running->block->shared_bytes + alignment - 1) / alignment * alignment;
  cluster->static_shared.push_back({key, offset});
  const size_t limit = cluster->launch.shared_limit;
  if (offset + bytes > limit) {
    report_fatal("shared memory", Site(), "%zu bytes, the limit is %zu", offset + bytes, limit);
  }
  for (Block& block : cluster->blocks) {
    block.shared_bytes = offset + bytes;
    if (checked) block.shadow.grow(block.shared_bytes);
  }
  return running->block->shared + offset;
}

uint32_t shared_address(const void* shared, Where at) {
  size_t offset;
  const Block* block = block_of(shared, &offset);
  if (!block) {
    report_fatal("shared address", at, "the pointer is not one to shared memory");
    return kFirstAddress;
  }
  return make_address(block->rank, offset);
}

uint32_t mapa(uint32_t address, uint32_t rank) { return rank << 24 | within_block(address); }

uint32_t cluster_rank() { return static_cast<uint32_t>(running->block->rank); }

Accessor running_thread_accessor() {
  return {running->agent, running->knowledge.seen(running->agent), &running->knowledge, false};
}

void check_alignment(const void* pointer, size_t alignment, const char* what, const Site& site) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignment == 0) return;
  report("misaligned", site, "%s needs an address that is a multiple of %zu", what, alignment);
}

bool check_shared(uint32_t address, size_t bytes, bool writes, const Accessor& accessor, const Site& site) {
  size_t offset;
  Block* block = block_of(shared_pointer(address), &offset);
  const bool inside = block && rank_of(address) < static_cast<int>(cluster->blocks.size()) &&
                      offset <= block->shared_bytes && bytes <= block->shared_bytes - offset;
  if (!inside) {
    report_fatal("shared out of bounds", site, "%s of %zu bytes at offset %d", writes ? "write" : "read", bytes,
                 static_cast<int>(within_block(address)) - static_cast<int>(kFirstAddress));
    return false;
  }
  if (!checked) return true;
  if (writes) {
    block->shadow.write(offset, bytes, accessor, site);
  } else {
    block->shadow.read(offset, bytes, accessor, site);
  }
  return true;
}

void check_access(const void* pointer, size_t bytes, bool writes, const Site& site) {
  size_t offset;
  if (const Block* block = block_of(pointer, &offset)) {
    check_shared(make_address(block->rank, offset), bytes, writes, running_thread_accessor(), site);
  } else {
    check_global(pointer, bytes, writes, site);
  }
}

void load_shared(void* value, uint32_t address, int bytes, Where at) {
  const void* pointer = shared_pointer(address);
  if (checked) {
    check_alignment(pointer, static_cast<size_t>(bytes), "the load", at);
    check_shared(address, static_cast<size_t>(bytes), false, running_thread_accessor(), at);
  }
  memcpy(value, pointer, static_cast<size_t>(bytes));
}

void store_shared(uint32_t address, const void* value, int bytes, Where at) {
  void* pointer = shared_pointer(address);
  if (checked) {
    check_alignment(pointer, static_cast<size_t>(bytes), "the store", at);
    check_shared(address, static_cast<size_t>(bytes), true, running_thread_accessor(), at);
  }
  memcpy(pointer, value, static_cast<size_t>(bytes));
}

}  // namespace ik::host_cuda
