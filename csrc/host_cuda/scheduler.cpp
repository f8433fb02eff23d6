#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <stdexcept>

#include "host_cuda/machine.h"

namespace ik::host_cuda {

Cluster* cluster = nullptr;
Fiber* running = nullptr;
Schedule schedule;
bool checked = false;

namespace {

uint64_t next_random() {
  uint64_t& state = cluster->random;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

bool is_random() { return schedule.order > 1; }

// The threads that can run, in the schedule's order.
std::vector<int> next_batch() {
  std::vector<int> batch = std::exchange(cluster->ready, {});
  if (schedule.order == 1) {
    std::sort(batch.begin(), batch.end(), std::greater<int>());
  } else {
    std::sort(batch.begin(), batch.end());
  }
  if (!is_random()) return batch;
  for (size_t i = batch.size(); i > 1; --i) std::swap(batch[i - 1], batch[next_random() % i]);
  return batch;
}

void perform_copy(size_t index) {
  const StartedCopy copy = std::move(cluster->copies[index]);
  cluster->copies.erase(cluster->copies.begin() + static_cast<int64_t>(index));
  copy.perform();
}

void perform_some_copy() { perform_copy(is_random() ? next_random() % cluster->copies.size() : 0); }

void report_deadlock() {
  std::map<std::string, int> waiting;
  for (const Fiber& fiber : cluster->fibers) {
    if (!fiber.done) ++waiting[std::string(fiber.waiting_for) + " at " + fiber.waiting_at.text()];
  }
  std::string text;
  Site site;
  for (const auto& [what, threads] : waiting) text += std::to_string(threads) + " threads wait for " + what + "; ";
  for (const Fiber& fiber : cluster->fibers) {
    if (!fiber.done) site = fiber.waiting_at;
  }
  const uint3 block = cluster->blocks[0].index;
  report_fatal("deadlock", site, "%s[%s block %u,%u,%u]", text.c_str(), cluster->launch.name, block.x, block.y,
               block.z);
}

void run(Fiber& fiber) {
  running = &fiber;
  cluster->scheduler.switch_to(fiber.context);
  running = nullptr;
}

void run_threads() {
  while (cluster->live && !cluster->abandoned) {
    if (cluster->ready.empty() && cluster->copies.empty()) {
      report_deadlock();
      return;
    }
    const bool early_copy = is_random() && !cluster->copies.empty() && next_random() % 2;
    if (cluster->ready.empty() || early_copy) perform_some_copy();
    for (const int index : next_batch()) {
      if (!cluster->abandoned) run(cluster->fibers[static_cast<size_t>(index)]);
    }
  }
}

void fiber_main() {
  cluster->kernel();
  end_copies();
  Fiber& fiber = *running;
  fiber.done = true;
  --fiber.block->live;
  --cluster->live;
  leave_block_barrier();
  leave_cluster_barrier();
  fiber.context.switch_to(cluster->scheduler);
}

// Shared memory must not be touched by others once its block has gone.
void check_exit() {
  for (const StartedCopy& copy : cluster->copies) report("copy in flight", copy.site, "the kernel ends before it");
  if (!checked || cluster->blocks.size() == 1) return;
  for (const Block& block : cluster->blocks) {
    Knowledge known;
    for (const Fiber& fiber : cluster->fibers) {
      if (fiber.block == &block) known.learn(fiber.knowledge);
    }
    if (!block.shadow.touched_beyond(known)) continue;
    report("cluster exit", Site(), "block %d of a cluster of %s may end before others have accessed its shared memory",
           block.rank, cluster->launch.name);
  }
}

std::vector<char*> stacks;

}  // namespace

char* fiber_stack(size_t index) {
  constexpr size_t kGuard = 4096;
  while (stacks.size() <= index) {
    void* memory =
        mmap(nullptr, kStackBytes + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("no memory for the stacks of a block's threads");
    mprotect(memory, kGuard, PROT_NONE);
    stacks.push_back(static_cast<char*>(memory) + kGuard);
  }
  return stacks[index];
}

bool in_fiber_stack(const void* pointer) {
  const char* at = static_cast<const char*>(pointer);
  return std::any_of(stacks.begin(), stacks.end(),
                     [at](const char* stack) { return at >= stack && at < stack + kStackBytes; });
}

void wait_here(const char* what, const Site& site) {
  running->waiting_for = what;
  running->waiting_at = site;
  running->context.switch_to(cluster->scheduler);
}

void wake(Fiber& fiber) { cluster->ready.push_back(fiber.index); }

void abandon_cluster() {
  cluster->abandoned = true;
  running->context.switch_to(cluster->scheduler);
}

void start_copy(const Site& site, std::function<void()> perform) {
  if (schedule.lazy) {
    cluster->copies.push_back({site, std::move(perform)});
  } else {
    perform();
  }
}

void run_cluster(Cluster& prepared) {
  cluster = &prepared;
  for (Fiber& fiber : prepared.fibers) {
    fiber.stack = fiber_stack(static_cast<size_t>(fiber.index));
    fiber.context.prepare(fiber.stack, kStackBytes, fiber_main);
    prepared.ready.push_back(fiber.index);
  }
  run_threads();
  running = nullptr;
  if (!prepared.abandoned && !prepared.live) check_exit();
  cluster = nullptr;
}

Agent new_agent(const std::string& name) {
  cluster->other_agents.push_back(name);
  const size_t agent = cluster->fibers.size() + cluster->other_agents.size();
  if (agent >= kNobody) throw std::runtime_error("too many agents in one cluster");
  return static_cast<Agent>(agent);
}

std::string agent_name(Agent agent) {
  if (agent == kPreviousLaunch) return "the previous launch";
  const size_t threads = cluster->fibers.size();
  if (agent > threads) return cluster->other_agents[agent - threads - 1];
  const Fiber& fiber = cluster->fibers[agent - size_t{1}];
  const std::string name = "thread " + std::to_string(fiber.linear);
  return cluster->blocks.size() == 1 ? name : name + " of block " + std::to_string(fiber.block->rank);
}

}  // namespace ik::host_cuda
