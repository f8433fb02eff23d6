// Warpgroups: 128 threads that start products on the tensor cores together.
#pragma once
#include <deque>
#include <map>
#include <vector>

#include "host_cuda/clocks.h"
#include "host_cuda/report.h"
#include "host_cuda/runtime.h"

namespace ik::host_cuda {

struct Fiber;

constexpr int kWarpgroupThreads = 128;
constexpr int kWgmmaRows = 64;
constexpr int kWgmmaDepth = 16;

enum class WarpgroupOperation { kFence, kProduct, kCommit, kWait };

struct WgmmaProduct {
  WgmmaArguments arguments;         // of the first thread
  std::vector<double> a_registers;  // [64][16], where A is not in shared memory
};

// The accumulators of all threads while products are in flight: their registers hold a mark that must not change.
struct WgmmaAccumulators {
  std::vector<double> values;  // [64][N]
  float* registers[kWarpgroupThreads];
  int in_flight = 0;
};

struct WgmmaGroup {
  std::vector<WgmmaProduct> products;
  Time time;
};

struct Warpgroup {
  WarpgroupOperation operation;
  Site site;
  int arrived = 0;
  void* arguments[kWarpgroupThreads];
  Fiber* threads[kWarpgroupThreads];

  bool fenced = false;
  Agent agent = kNobody;
  Time now = 1;
  std::vector<WgmmaProduct> open;
  std::deque<WgmmaGroup> committed;
  std::map<float*, WgmmaAccumulators> accumulators;  // by the first thread's registers
};

}  // namespace ik::host_cuda
