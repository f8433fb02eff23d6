// Asynchronous copies that a thread waits for in groups: cp.async, and the stores of TMA.
#pragma once
#include <deque>
#include <functional>
#include <vector>

#include "host_cuda/clocks.h"
#include "host_cuda/runtime.h"

namespace ik::host_cuda {

struct ElementCopy {
  uint32_t shared;
  const void* global;
  int size, bytes;
};

template <typename Copy>
struct CopyGroups {
  struct Group {
    std::vector<Copy> copies;
    Time time;
  };
  std::vector<Copy> open;
  std::deque<Group> committed;
  Time now = 1;
  Agent agent = kNobody;

  void commit() {
    committed.push_back({std::move(open), now});
    open.clear();
    ++now;
  }
  bool in_flight() const {
    for (const Group& group : committed) {
      if (!group.copies.empty()) return true;
    }
    return !open.empty();
  }
};

using Loads = CopyGroups<ElementCopy>;
using Stores = CopyGroups<std::function<void()>>;

// Reports and completes what the running thread leaves behind when it ends.
void end_copies();

}  // namespace ik::host_cuda
