#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "host_cuda/machine.h"
#include "host_cuda/memory.h"
#include "host_cuda/session.h"

namespace ik::host_cuda {
namespace {

uint32_t clusters_so_far = 0;  // of the session

Launched describe(const Launch& launch) {
  Dl_info symbol = {};
  const bool known = dladdr(launch.kernel, &symbol) != 0 && symbol.dli_sname != nullptr;
  return {known ? symbol.dli_sname : launch.name, static_cast<int>(launch.block.x * launch.block.y * launch.block.z),
          static_cast<int64_t>(launch.shared), static_cast<int64_t>(launch.shared_limit)};
}

bool check_launch(const Launch& launch) {
  constexpr uint32_t kMostThreads = 1024;
  constexpr int kMostBlocks = 16;
  constexpr uint32_t kMostY = 65535;
  const uint32_t threads = launch.block.x * launch.block.y * launch.block.z;
  const bool grid =
      launch.grid.x && launch.grid.y && launch.grid.z && launch.grid.y <= kMostY && launch.grid.z <= kMostY;
  const bool whole_clusters = launch.cluster >= 1 && launch.cluster <= kMostBlocks &&
                              launch.grid.x % static_cast<uint32_t>(launch.cluster) == 0;
  if (grid && whole_clusters && threads && threads <= kMostThreads && launch.shared <= launch.shared_limit) return true;
  report_fatal("launch", Site(), "%s: grid %u,%u,%u, %u threads, clusters of %d, %zu of %zu bytes of shared memory",
               launch.name, launch.grid.x, launch.grid.y, launch.grid.z, threads, launch.cluster, launch.shared,
               launch.shared_limit);
  return false;
}

uint3 unfold(uint64_t index, uint3 size) {
  return {static_cast<uint32_t>(index % size.x), static_cast<uint32_t>(index / size.x % size.y),
          static_cast<uint32_t>(index / size.x / size.y)};
}

void prepare(Block& block, const Launch& launch, uint64_t index, int rank, int threads) {
  block.index = unfold(index, launch.grid);
  block.rank = rank;
  block.live = threads;
  block.warps = (threads + 31) / 32;
  block.shared = shared_begin(rank);
  block.shared_bytes = launch.shared;
  memset(arena_of_rank(rank) + kArenaMapped, 0xff, kArenaMapped);  // NaN, whatever the type
  if (checked) block.shadow.reset(launch.shared);
  block.meetings.resize(static_cast<size_t>(block.warps));
  block.warpgroups.resize(static_cast<size_t>(threads / kWarpgroupThreads));
}

void prepare(Fiber& fiber, Block& block, const Launch& launch, int index, int linear) {
  fiber.thread = unfold(static_cast<uint64_t>(linear), launch.block);
  fiber.agent = static_cast<Agent>(index + 1);
  fiber.index = index;
  fiber.linear = linear;
  fiber.warp = linear / 32;
  fiber.lane = linear % 32;
  fiber.block = &block;
  fiber.done = false;
  if (checked) fiber.knowledge.learn(fiber.agent, 1);
}

void execute_cluster(const Launch& launch, const std::function<void()>& kernel, uint64_t first_block,
                     uint32_t first_sequence) {
  const int threads = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  Cluster state = {launch, kernel, ++clusters_so_far, first_sequence, {}, {}, {}, {}, {}, {}, {}, {}, 0, false, 0};
  state.live = threads * launch.cluster;
  constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;
  state.random = (first_block + 1) * kOdd + static_cast<uint64_t>(schedule.order);
  state.blocks.resize(static_cast<size_t>(launch.cluster));
  state.fibers.resize(static_cast<size_t>(state.live));
  for (int rank = 0; rank < launch.cluster; ++rank) {
    Block& block = state.blocks[static_cast<size_t>(rank)];
    prepare(block, launch, first_block + static_cast<uint64_t>(rank), rank, threads);
    for (int linear = 0; linear < threads; ++linear) {
      const int index = rank * threads + linear;
      prepare(state.fibers[static_cast<size_t>(index)], block, launch, index, linear);
    }
  }
  run_cluster(state);
}

}  // namespace

uint3 thread_index() { return running->thread; }
uint3 block_index() { return running->block->index; }
uint3 block_size() { return cluster->launch.block; }
uint3 grid_size() { return cluster->launch.grid; }
int lane_index() { return running->lane; }

void grid_dependency_wait() {
  if (checked) running->knowledge.learn(kPreviousLaunch, 1);
}

void launch(const Launch& launch, const std::function<void()>& kernel) {
  if (fatal_reported() || !check_launch(launch)) return;
  launched.push_back(describe(launch));
  if (!executes) return;
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const uint64_t step = static_cast<uint64_t>(launch.cluster);
  const uint32_t first_sequence = clusters_so_far + 1;
  for (uint64_t i = 0; i < blocks && !fatal_reported(); i += step) {
    const uint64_t block = schedule.order == 1 ? blocks - step - i : i;
    execute_cluster(launch, kernel, block, first_sequence);
  }
}

}  // namespace ik::host_cuda
