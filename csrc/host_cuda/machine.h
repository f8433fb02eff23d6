// The machine while it executes one cluster of a launch: its blocks, their threads as fibers, and who may run.
#pragma once
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "host_cuda/barrier.h"
#include "host_cuda/clocks.h"
#include "host_cuda/copies.h"
#include "host_cuda/mbarrier.h"
#include "host_cuda/report.h"
#include "host_cuda/runtime.h"
#include "host_cuda/session.h"
#include "host_cuda/shadow.h"
#include "host_cuda/stack_switch.h"
#include "host_cuda/warp.h"
#include "host_cuda/warpgroup.h"

namespace ik::host_cuda {

struct Block;

// Agents: the launch before this one, then the threads of the cluster, then copies and products as they come up.
constexpr Agent kPreviousLaunch = 0;

struct Fiber {
  StackContext context;
  char* stack;
  uint3 thread;
  Agent agent;
  int index;   // in the cluster
  int linear;  // in the block
  int warp, lane;
  Block* block;
  bool done;
  const char* waiting_for;
  Site waiting_at;
  Loads loads;
  Stores stores;
  Knowledge knowledge;
};

struct Block {
  static constexpr int kBarriers = 16;

  uint3 index;
  int rank;  // in the cluster
  int live;
  int warps;
  char* shared;
  size_t shared_bytes;
  Shadow shadow;
  Barrier barriers[kBarriers];
  std::vector<std::vector<WarpMeeting>> meetings;  // by warp
  std::vector<Warpgroup> warpgroups;
  std::map<uint32_t, Mbarrier> mbarriers;  // by address within the block
};

struct StartedCopy {
  Site site;
  std::function<void()> perform;
};

struct Cluster {
  const Launch& launch;
  const std::function<void()>& kernel;
  uint32_t sequence;         // counts clusters over the session, from 1
  uint32_t first_of_launch;  // the sequence of the launch's first cluster
  std::vector<Fiber> fibers;
  std::vector<Block> blocks;
  std::vector<std::pair<const void*, size_t>> static_shared;  // offsets by key
  std::vector<std::string> other_agents;                      // copies and products
  std::vector<int> ready;
  std::deque<StartedCopy> copies;  // may happen at any time
  Barrier barrier;
  StackContext scheduler;
  int live;
  bool abandoned = false;
  uint64_t random;
};

extern Cluster* cluster;
extern Fiber* running;
extern Schedule schedule;
extern bool checked;

// ---- scheduling (scheduler.cpp) ----
void wait_here(const char* what, const Site& site);  // until somebody wakes the running thread
void wake(Fiber& fiber);
void abandon_cluster();  // does not return to the running thread
void start_copy(const Site& site, std::function<void()> perform);
void run_cluster(Cluster& prepared);
char* fiber_stack(size_t index);
bool in_fiber_stack(const void* pointer);
constexpr size_t kStackBytes = size_t{256} << 10;

// ---- agents ----
Agent new_agent(const std::string& name);
std::string agent_name(Agent agent);
inline bool is_thread(Agent agent) { return agent != kPreviousLaunch && agent <= cluster->fibers.size(); }

inline Knowledge& knowledge() { return running->knowledge; }
// What this thread does from now on is unknown to those who learned from it before.
inline void tick(Fiber& fiber) {
  if (checked) fiber.knowledge.learn(fiber.agent, fiber.knowledge.seen(fiber.agent) + 1);
}

}  // namespace ik::host_cuda
