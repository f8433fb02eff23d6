#include "cpu/scratch.h"

#include <new>

namespace ik::cpu {
namespace {

constexpr std::align_val_t kAlignment{4096};

struct Buffer {
  void* data = nullptr;
  size_t capacity = 0;

  void release() {
    if (data) ::operator delete(data, kAlignment);
    data = nullptr;
    capacity = 0;
  }
  ~Buffer() { release(); }
};

thread_local Buffer buffers[static_cast<int>(Scratch::kCount)];

}  // namespace

void* scratch(Scratch which, size_t bytes) {
  Buffer& buffer = buffers[static_cast<int>(which)];
  if (bytes > buffer.capacity) {
    const size_t capacity = (bytes + 65535) / 65536 * 65536;
    buffer.release();
    buffer.data = ::operator new(capacity, kAlignment);
    buffer.capacity = capacity;
  }
  return buffer.data;
}

}  // namespace ik::cpu
