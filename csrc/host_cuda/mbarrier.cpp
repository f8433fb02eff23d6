#include "host_cuda/mbarrier.h"

#include "host_cuda/machine.h"
#include "host_cuda/memory.h"

namespace ik::host_cuda {
namespace {

void try_complete(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.arrivals;
  if (checked) {
    barrier.completed.learn(barrier.arriving);
    barrier.arriving.clear();
  }
  const std::vector<Mbarrier::Waiter> waiting = std::exchange(barrier.waiting, {});
  for (const Mbarrier::Waiter& waiter : waiting) {
    if (barrier.phase != waiter.parity) {
      wake(*waiter.fiber);
    } else {
      barrier.waiting.push_back(waiter);
    }
  }
}

}  // namespace

Mbarrier* find_mbarrier(uint32_t address, bool for_copies, const Site& site) {
  const size_t rank = static_cast<size_t>(rank_of(address));
  if (rank < cluster->blocks.size()) {
    auto& mbarriers = cluster->blocks[rank].mbarriers;
    const auto found = mbarriers.find(within_block(address));
    if (found != mbarriers.end()) {
      Mbarrier& barrier = found->second;
      if (!checked) return &barrier;
      if (barrier.initializer != running->agent && knowledge().seen(barrier.initializer) < barrier.initialized) {
        report("mbarrier", site, "its init, by %s, is not ordered before", agent_name(barrier.initializer).c_str());
      }
      const bool remote = cluster->blocks[rank].rank != running->block->rank;
      if ((for_copies && !barrier.visible_to_copies) || (remote && !barrier.visible_to_cluster)) {
        report("mbarrier", site, "no mbar_fence_init has made its init visible");
      }
      return &barrier;
    }
  }
  report_fatal("mbarrier", site, "there is no barrier at offset %d",
               static_cast<int>(within_block(address)) - static_cast<int>(kFirstAddress));
  return nullptr;
}

void complete_bytes(Mbarrier& barrier, int64_t bytes, Time time) {
  barrier.bytes -= bytes;
  if (checked) barrier.arriving.learn(barrier.agent, time);
  try_complete(barrier);
}

void mbar_init(uint32_t address, int arrivals, Where at) {
  check_alignment(shared_pointer(address), sizeof(uint64_t), "an mbarrier", at);
  if (arrivals <= 0) report("mbarrier", at, "%d arrivals", arrivals);
  if (!check_shared(address, sizeof(uint64_t), true, running_thread_accessor(), at)) return;
  Mbarrier barrier = {};
  barrier.arrivals = arrivals;
  barrier.pending = arrivals;
  barrier.now = 1;
  barrier.initializer = running->agent;
  if (checked) {
    barrier.agent = new_agent("an asynchronous copy");
    barrier.initialized = knowledge().seen(running->agent);
    running->block->shadow.give_to_mbarrier(within_block(address) - kFirstAddress, sizeof(uint64_t));
  }
  running->block->mbarriers[within_block(address)] = std::move(barrier);
}

void mbar_fence_init() {
  for (auto& [offset, barrier] : running->block->mbarriers) {
    if (barrier.initializer != running->agent) continue;
    barrier.visible_to_copies = true;
    barrier.visible_to_cluster = true;
  }
}

void mbar_arrive(uint32_t address, int bytes, Where at) {
  Mbarrier* barrier = find_mbarrier(address, false, at);
  if (!barrier) return;
  if (checked) {
    barrier->arriving.learn(running->knowledge);
    tick(*running);
  }
  barrier->bytes += bytes;
  if (--barrier->pending < 0) report("mbarrier", at, "more than its %d arrivals in one phase", barrier->arrivals);
  try_complete(*barrier);
}

void mbar_wait(uint32_t address, int parity, Where at) {
  Mbarrier* barrier = find_mbarrier(address, false, at);
  if (!barrier) return;
  if (parity != 0 && parity != 1) report("mbarrier", at, "parity %d", parity);
  while (barrier->phase == parity) {
    barrier->waiting.push_back({running, parity});
    wait_here("an mbarrier", at);
  }
  if (checked) running->knowledge.learn(barrier->completed);
}

void fence_proxy_async() {
  if (!checked) return;
  running->knowledge.fence();
  for (auto& [offset, barrier] : running->block->mbarriers) {
    if (barrier.initializer == running->agent) barrier.visible_to_copies = true;
  }
}

}  // namespace ik::host_cuda
