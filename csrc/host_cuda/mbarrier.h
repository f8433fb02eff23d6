// Barriers in shared memory that count arrivals and bytes.
#pragma once
#include <cstdint>
#include <vector>

#include "host_cuda/clocks.h"
#include "host_cuda/report.h"

namespace ik::host_cuda {

struct Fiber;

struct Mbarrier {
  struct Waiter {
    Fiber* fiber;
    int parity;
  };

  int arrivals;  // of a phase
  int pending;
  int64_t bytes = 0;  // still to come in this phase; copies may be faster than the thread that announces them
  int phase = 0;
  std::vector<Waiter> waiting;

  Agent agent = kNobody;  // of the copies that complete here
  Time now = 1;
  Agent initializer;
  Time initialized;
  bool visible_to_copies = false;   // by either fence
  bool visible_to_cluster = false;  // by mbar_fence_init
  Knowledge arriving, completed;
};

// Null after a report.
Mbarrier* find_mbarrier(uint32_t address, bool for_copies, const Site& site);
// A copy that was started at `time` of the barrier's agent has arrived.
void complete_bytes(Mbarrier& barrier, int64_t bytes, Time time);

}  // namespace ik::host_cuda
