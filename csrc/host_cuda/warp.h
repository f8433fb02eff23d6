// Warps meet: lanes deposit their arguments, the last one computes for all.
#pragma once
#include <cstdint>

#include "host_cuda/report.h"

namespace ik::host_cuda {

struct Fiber;

enum class WarpOperation { kSync, kShuffle, kBallot, kElect, kLoadMatrix, kStoreMatrix, kProduct };

struct WarpMeeting {
  WarpOperation operation;
  uint32_t mask;
  uint32_t arrived = 0;
  Site site;
  void* arguments[32] = {};
  Fiber* lanes[32] = {};
};

using WarpFunction = void (*)(void** arguments, uint32_t mask);
// Returns when all lanes of `mask` have come and `function` has run; only kSync orders memory.
void meet_warp(WarpOperation operation, uint32_t mask, void* arguments, WarpFunction function, const Site& site);

constexpr uint32_t kAllLanes = 0xffffffffu;
int lanes_of_warp(int warp);

}  // namespace ik::host_cuda
