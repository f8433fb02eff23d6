#include "cpu/memory.h"

#include <cstdlib>
#include <list>
#include <mutex>
#include <new>
#include <set>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace ik::cpu {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSegment = size_t{32} << 20;  // the smallest
constexpr size_t kRest = 4096;                 // a smaller rest is not worth a block
constexpr int64_t kWindow = 8192;              // a segment that so many takes did not need goes back to the system

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

struct Segment {
  void* data;
  size_t size;
  int64_t last_taken;
};

// In front of its memory. Neighbours are those in the segment; free ones are never neighbours.
struct alignas(kAlignment) Block {
  size_t size;  // with this header
  Block* before;
  Block* after;
  std::list<Segment>::iterator segment;
  bool free;

  char* begin() { return reinterpret_cast<char*>(this); }
  void* data() { return this + 1; }
};

struct BySize {
  using is_transparent = void;
  bool operator()(const Block* a, const Block* b) const { return a->size != b->size ? a->size < b->size : a < b; }
  bool operator()(const Block* a, size_t size) const { return a->size < size; }
};

class Pool {
 public:
  void* take(size_t bytes) {
    const size_t size = round_up(bytes, kAlignment) + sizeof(Block);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (++takes_ % kWindow == 0) release(takes_ - kWindow);
    auto found = free_.lower_bound(size);
    Block* block = found != free_.end() ? *found : new_segment(size);
    if (!block) return nullptr;
    if (found != free_.end()) free_.erase(found);
    if (block->size - size >= kRest) split(block, size);
    block->free = false;
    block->segment->last_taken = takes_;
    taken_ += block->size;
    return block->data();
  }

  void give(void* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Block* block = static_cast<Block*>(data) - 1;
    taken_ -= block->size;
    block->free = true;
    if (block->after && block->after->free) {
      free_.erase(block->after);
      absorb_next(block);
    }
    if (block->before && block->before->free) {
      block = block->before;
      free_.erase(block);
      absorb_next(block);
    }
    free_.insert(block);
  }

  MemoryUse use() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {static_cast<int64_t>(taken_), static_cast<int64_t>(held_ - taken_)};
  }

  void release_all() {
    const std::lock_guard<std::mutex> lock(mutex_);
    release(takes_ + 1);
  }

  std::mutex& mutex() { return mutex_; }

 private:
  Block* new_segment(size_t size) {
    size = round_up(size < kSegment ? kSegment : size, kHugePage);
    void* data = from_system(size);
    if (!data) {
      release(takes_ + 1);
      data = from_system(size);
      if (!data) return nullptr;
    }
#if defined(__linux__)
    madvise(data, size, MADV_HUGEPAGE);
#endif
    segments_.push_front({data, size, takes_});
    held_ += size;
    return new (data) Block{size, nullptr, nullptr, segments_.begin(), true};
  }

  static void* from_system(size_t size) { return ::operator new(size, std::align_val_t{kHugePage}, std::nothrow); }

  void split(Block* block, size_t size) {
    Block* rest = new (block->begin() + size) Block{block->size - size, block, block->after, block->segment, true};
    if (rest->after) rest->after->before = rest;
    block->after = rest;
    block->size = size;
    free_.insert(rest);
  }

  void absorb_next(Block* block) {
    Block* next = block->after;
    block->size += next->size;
    block->after = next->after;
    if (block->after) block->after->before = block;
  }

  // Segments in which nothing is taken, and was since then.
  void release(int64_t since) {
    for (auto segment = segments_.begin(); segment != segments_.end();) {
      const auto here = segment++;
      Block* first = static_cast<Block*>(here->data);
      if (!first->free || first->size != here->size || here->last_taken >= since) continue;
      free_.erase(first);
      held_ -= here->size;
      ::operator delete(here->data, std::align_val_t{kHugePage});
      segments_.erase(here);
    }
  }

  std::mutex mutex_;
  std::list<Segment> segments_;
  std::set<Block*, BySize> free_;
  int64_t takes_ = 0;
  size_t taken_ = 0, held_ = 0;
};

// glibc gives every block back that is larger than any that was freed before, up to 32 MiB. Activations used to raise
// that bound for all other tensors of the process, and do not pass through malloc any more.
void raise_mmap_threshold() {
#if defined(__GLIBC__)
  void* volatile block = std::malloc((size_t{32} << 20) - 8192);
  std::free(block);
#endif
}

Pool& pool() {
  // Never destroyed: tensors may die after the static objects.
  static Pool& pool = *[] {
    raise_mmap_threshold();
    auto* made = new Pool;
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork([] { ik::cpu::pool().mutex().lock(); }, [] { ik::cpu::pool().mutex().unlock(); },
                   [] { ik::cpu::pool().mutex().unlock(); });
#endif
    return made;
  }();
  return pool;
}

}  // namespace

void* take_memory(size_t bytes) { return pool().take(bytes); }
void give_memory(void* data) { pool().give(data); }
MemoryUse memory_use() { return pool().use(); }
void release_memory() { pool().release_all(); }

}  // namespace ik::cpu
