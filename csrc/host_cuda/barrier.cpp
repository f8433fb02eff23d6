#include "host_cuda/barrier.h"

#include "host_cuda/machine.h"

namespace ik::host_cuda {
namespace {

constexpr const char* kDivergent = "divergent barrier";

int threads_per_block() { return static_cast<int>(cluster->fibers.size() / cluster->blocks.size()); }

// A warp arrives as a whole: the hardware counts 32 threads for it, however many lanes execute the instruction.
void check_whole_warps(const Barrier& barrier, const Site& site) {
  std::vector<int> lanes(static_cast<size_t>(running->block->warps), 0);
  for (const Fiber* fiber : barrier.waiting) ++lanes[static_cast<size_t>(fiber->warp)];
  for (const Fiber* fiber : barrier.arrived) ++lanes[static_cast<size_t>(fiber->warp)];
  for (size_t warp = 0; warp < lanes.size(); ++warp) {
    const int all = lanes_of_warp(static_cast<int>(warp));
    if (lanes[warp] % all) report(kDivergent, site, "%d of %d lanes of warp %zu arrive", lanes[warp], all, warp);
  }
}

void enter(Barrier& barrier, int id, int threads, const Site& site) {
  const bool whole_block = threads < 0;
  const int expected = whole_block ? running->block->live : threads;
  if (whole_block && expected < threads_per_block()) {
    report(kDivergent, site, "%d threads of the block have ended before", threads_per_block() - expected);
  }
  if (!whole_block && (threads % 32 || threads == 0 || threads > threads_per_block())) {
    report(kDivergent, site, "%d threads cannot meet in a block of %d", threads, threads_per_block());
  }
  if (barrier.idle()) {
    barrier.site = site;
    barrier.expected = expected;
    barrier.whole_block = whole_block;
  } else if (whole_block && !(barrier.site == site)) {
    report(kDivergent, site, "other threads of the block wait at %s", barrier.site.text().c_str());
  } else if (!whole_block && barrier.expected != threads) {
    report(kDivergent, site, "barrier %d is entered for %d threads here, for %d at %s", id, threads, barrier.expected,
           barrier.site.text().c_str());
  }
}

bool is_complete(const Barrier& barrier) {
  return static_cast<int>(barrier.waiting.size() + barrier.arrived.size()) >= barrier.expected;
}

Barrier* barrier_of_block(int id, const Site& site) {
  if (id >= 0 && id < Block::kBarriers) return &running->block->barriers[id];
  report_fatal(kDivergent, site, "barrier %d of 0 to %d", id, Block::kBarriers - 1);
  return nullptr;
}

}  // namespace

void share_knowledge(const std::vector<Fiber*>& fibers, Knowledge common) {
  if (!checked) return;
  for (const Fiber* fiber : fibers) common.learn(fiber->knowledge);
  for (Fiber* fiber : fibers) {
    fiber->knowledge = common;
    tick(*fiber);
  }
}

void complete(Barrier& barrier) {
  const Barrier done = std::exchange(barrier, Barrier{});
  share_knowledge(done.waiting, done.arrival);
  for (Fiber* fiber : done.waiting) {
    if (fiber != running) wake(*fiber);
  }
}

void bar_sync(int id, int threads, Where at) {
  Barrier& barrier = *barrier_of_block(id, at);
  enter(barrier, id, threads, at);
  barrier.waiting.push_back(running);
  if (!is_complete(barrier)) {
    wait_here("a barrier", at);
    return;
  }
  if (checked) check_whole_warps(barrier, at);
  complete(barrier);
}

void bar_arrive(int id, int threads, Where at) {
  Barrier& barrier = *barrier_of_block(id, at);
  enter(barrier, id, threads, at);
  barrier.arrived.push_back(running);
  if (checked) {
    barrier.arrival.learn(running->knowledge);
    tick(*running);
  }
  if (!is_complete(barrier)) return;
  if (checked) check_whole_warps(barrier, at);
  complete(barrier);
}

void leave_block_barrier() {
  Barrier& barrier = running->block->barriers[0];
  if (!barrier.whole_block || --barrier.expected > static_cast<int>(barrier.waiting.size())) return;
  report(kDivergent, barrier.site, "some threads of the block end without reaching it");
  complete(barrier);
}

void cluster_sync(Where at) {
  Barrier& barrier = cluster->barrier;
  if (barrier.idle()) barrier.site = at;
  barrier.waiting.push_back(running);
  barrier.expected = cluster->live;
  if (is_complete(barrier)) {
    complete(barrier);
  } else {
    wait_here("the cluster's barrier", at);
  }
}

void leave_cluster_barrier() {
  Barrier& barrier = cluster->barrier;
  if (barrier.idle() || --barrier.expected > static_cast<int>(barrier.waiting.size())) return;
  report(kDivergent, barrier.site, "some threads of the cluster end without reaching it");
  complete(barrier);
}

}  // namespace ik::host_cuda
