#include "host_cuda/machine.h"
#include "host_cuda/memory.h"
#include "host_cuda/product.h"
#include "host_cuda/wgmma_operand.h"

namespace ik::host_cuda {
namespace {

// What the accumulators of products in flight hold: a NaN that no arithmetic makes.
constexpr uint32_t kInFlight = 0x7fe0dead;

using WarpgroupFunction = void (*)(Warpgroup& group, const Site& site);

void meet_warpgroup(WarpgroupOperation operation, void* arguments, WarpgroupFunction function, const Site& site) {
  const size_t index = static_cast<size_t>(running->linear / kWarpgroupThreads);
  if (index >= running->block->warpgroups.size()) {
    report_fatal("wgmma", site, "the thread is in no complete warpgroup");
    return;
  }
  Warpgroup& group = running->block->warpgroups[index];
  if (group.arrived == 0) {
    group.operation = operation;
    group.site = site;
  } else if (group.operation != operation || !(group.site == site)) {
    report("divergent warpgroup", site, "other threads of the warpgroup wait at %s", group.site.text().c_str());
  }
  const int lane = running->linear % kWarpgroupThreads;
  group.arguments[lane] = arguments;
  group.threads[lane] = running;
  if (++group.arrived < kWarpgroupThreads) {
    wait_here("other threads of its warpgroup", site);
    return;
  }
  group.arrived = 0;
  function(group, site);
  for (Fiber* fiber : group.threads) {
    if (fiber != running) wake(*fiber);
  }
}

const WgmmaArguments& wgmma_arguments(const Warpgroup& group, int lane) {
  return *static_cast<const WgmmaArguments*>(group.arguments[lane]);
}

// Calls body(register index, row, column) for the accumulators of a thread.
template <typename Body>
void for_accumulators(int thread, int N, Body body) {
  const int row = thread / 32 * 16 + thread % 32 / 4;
  for (int i = 0; i < N / 2; ++i) body(i, row + 8 * ((i >> 1) & 1), i / 4 * 8 + 2 * (thread % 4) + (i & 1));
}

void take_accumulators(Warpgroup& group, const WgmmaArguments& first) {
  WgmmaAccumulators& taken = group.accumulators[first.d];
  if (taken.in_flight++ > 0) return;
  taken.values.resize(static_cast<size_t>(kWgmmaRows * first.N));
  for (int thread = 0; thread < kWarpgroupThreads; ++thread) {
    float* registers = taken.registers[thread] = wgmma_arguments(group, thread).d;
    for_accumulators(thread, first.N, [&](int i, int row, int column) {
      taken.values[static_cast<size_t>(row * first.N + column)] = registers[i];
      memcpy(&registers[i], &kInFlight, sizeof kInFlight);
    });
  }
}

void give_back(WgmmaAccumulators& taken, int N, const Site& site) {
  for (int thread = 0; thread < kWarpgroupThreads; ++thread) {
    float* registers = taken.registers[thread];
    for_accumulators(thread, N, [&](int i, int row, int column) {
      if (memcmp(&registers[i], &kInFlight, sizeof kInFlight) != 0) {
        report("wgmma", site, "accumulators were written while a product was in flight");
      }
      registers[i] = static_cast<float>(taken.values[static_cast<size_t>(row * N + column)]);
    });
  }
}

std::vector<double> gather_a_registers(const Warpgroup& group, const WgmmaArguments& first) {
  std::vector<double> a(kWgmmaRows * kWgmmaDepth);
  for (int thread = 0; thread < kWarpgroupThreads; ++thread) {
    const uint32_t* registers = wgmma_arguments(group, thread).a_registers;
    const int row = thread / 32 * 16 + thread % 32 / 4;
    for (int i = 0; i < 4; ++i) {
      for (int half = 0; half < 2; ++half) {
        const int k = 2 * (thread % 4) + 8 * (i >> 1) + half;
        const uint16_t bits = static_cast<uint16_t>(registers[i] >> (16 * half));
        a[static_cast<size_t>((row + 8 * (i & 1)) * kWgmmaDepth + k)] = operand_value(bits, first.operand);
      }
    }
  }
  return a;
}

void check_uniform(const Warpgroup& group, const WgmmaArguments& first, const Site& site) {
  for (int thread = 1; thread < kWarpgroupThreads; ++thread) {
    const WgmmaArguments& other = wgmma_arguments(group, thread);
    if (other.a == first.a && other.b == first.b && other.accumulate == first.accumulate) continue;
    report("wgmma", site, "descriptors differ between the threads of the warpgroup");
    return;
  }
}

// All threads start the product, so each of them must know that its operands are there.
void check_operands(Warpgroup& group, const WgmmaArguments& first, const Site& site) {
  if (group.agent == kNobody) group.agent = new_agent("a wgmma in flight");
  Knowledge common = group.threads[0]->knowledge;
  for (const Fiber* thread : group.threads) common.intersect(thread->knowledge);
  const Accessor accessor = {group.agent, group.now, &common, true};
  if (!first.a_registers) check_operand({first.a, kWgmmaRows, first.transpose_a, first.operand}, accessor, site);
  check_operand({first.b, first.N, first.transpose_b, first.operand}, accessor, site);
}

void start_product(Warpgroup& group, const Site& site) {
  const WgmmaArguments& first = wgmma_arguments(group, 0);
  if (checked) {
    if (!group.fenced) report("wgmma", site, "no wgmma_fence since the accumulators were free");
    check_uniform(group, first, site);
    check_operands(group, first, site);
  }
  take_accumulators(group, first);
  WgmmaProduct product = {first, {}};
  if (first.a_registers) product.a_registers = gather_a_registers(group, first);
  group.open.push_back(std::move(product));
}

void perform(WgmmaProduct& product, WgmmaAccumulators& accumulators) {
  const WgmmaArguments& arguments = product.arguments;
  std::vector<double>& a = product.a_registers;
  if (a.empty()) a = load_rows({arguments.a, kWgmmaRows, arguments.transpose_a, arguments.operand});
  const std::vector<double> b = load_columns({arguments.b, arguments.N, arguments.transpose_b, arguments.operand});
  if (!arguments.accumulate) std::fill(accumulators.values.begin(), accumulators.values.end(), 0.0);
  multiply(accumulators.values.data(), a.data(), b.data(), kWgmmaRows, arguments.N, kWgmmaDepth, kWgmmaDepth);
}

void finish_group(Warpgroup& group, const Site& site) {
  WgmmaGroup& oldest = group.committed.front();
  for (WgmmaProduct& product : oldest.products) {
    const auto found = group.accumulators.find(product.arguments.d);
    perform(product, found->second);
    if (--found->second.in_flight > 0) continue;
    give_back(found->second, product.arguments.N, site);
    group.accumulators.erase(found);
    group.fenced = false;
  }
  if (checked && group.agent != kNobody) {
    for (Fiber* thread : group.threads) thread->knowledge.learn(group.agent, oldest.time);
  }
  group.committed.pop_front();
}

}  // namespace

void wgmma(const WgmmaArguments& arguments, Where at) {
  WgmmaArguments mine = arguments;
  meet_warpgroup(WarpgroupOperation::kProduct, &mine, start_product, at);
}

void wgmma_fence(Where at) {
  meet_warpgroup(WarpgroupOperation::kFence, nullptr, [](Warpgroup& group, const Site&) { group.fenced = true; }, at);
}

void wgmma_commit(Where at) {
  meet_warpgroup(
      WarpgroupOperation::kCommit, nullptr,
      [](Warpgroup& group, const Site&) {
        group.committed.push_back({std::move(group.open), group.now++});
        group.open.clear();
      },
      at);
}

void wgmma_wait(int pending, Where at) {
  meet_warpgroup(
      WarpgroupOperation::kWait, &pending,
      [](Warpgroup& group, const Site& site) {
        const int allowed = *static_cast<int*>(group.arguments[0]);
        while (static_cast<int>(group.committed.size()) > allowed) finish_group(group, site);
      },
      at);
}

}  // namespace ik::host_cuda
