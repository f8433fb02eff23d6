#include "host_cuda/warp.h"

#include "host_cuda/machine.h"

namespace ik::host_cuda {
namespace {

WarpMeeting* find_meeting(std::vector<WarpMeeting>& meetings, WarpOperation operation, uint32_t mask,
                          const Site& site) {
  for (WarpMeeting& meeting : meetings) {
    const bool joins = meeting.mask == mask && meeting.operation == operation;
    if (joins && !(meeting.arrived >> running->lane & 1)) {
      if (!(meeting.site == site)) {
        report("divergent warp", site, "lanes of the same warp wait at %s", meeting.site.text().c_str());
      }
      return &meeting;
    }
    if (meeting.mask & mask) {
      report("divergent warp", site, "lanes of the same warp wait in another operation at %s",
             meeting.site.text().c_str());
    }
  }
  meetings.push_back({operation, mask, 0, site, {}, {}});
  return &meetings.back();
}

struct Vote {
  int predicate;
  uint32_t result;
};
void count_votes(void** arguments, uint32_t mask) {
  uint32_t result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) && static_cast<Vote*>(arguments[lane])->predicate) result |= 1u << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) static_cast<Vote*>(arguments[lane])->result = result;
  }
}

struct Exchange {
  uint64_t bits;
  int source;
  Site site;
  uint64_t result;
};
void exchange(void** arguments, uint32_t mask) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Exchange& mine = *static_cast<Exchange*>(arguments[lane]);
    if (mask >> mine.source & 1) {
      mine.result = static_cast<Exchange*>(arguments[mine.source])->bits;
    } else {
      report("shuffle", mine.site, "lane %d reads lane %d, which is not in the mask", lane, mine.source);
    }
  }
}

int source_lane(Shuffle kind, int lane, int operand, int width) {
  const int first = lane & ~(width - 1);
  switch (kind) {
    case Shuffle::kIndex:
      return first | (operand & (width - 1));
    case Shuffle::kXor:
      return (lane ^ operand) >= first + width ? lane : lane ^ operand;
    case Shuffle::kDown:
      return lane + operand >= first + width ? lane : lane + operand;
    case Shuffle::kUp:
      return lane - operand < first ? lane : lane - operand;
  }
  return lane;
}

}  // namespace

int lanes_of_warp(int warp) {
  const uint3 block = cluster->launch.block;
  return std::min(32, static_cast<int>(block.x * block.y * block.z) - 32 * warp);
}

void meet_warp(WarpOperation operation, uint32_t mask, void* arguments, WarpFunction function, const Site& site) {
  const int lanes = lanes_of_warp(running->warp);
  if (lanes < 32) mask &= (1u << lanes) - 1;
  if (!(mask >> running->lane & 1)) {
    report_fatal("divergent warp", site, "lane %d is not in its own mask %08x", running->lane, mask);
  }
  std::vector<WarpMeeting>& meetings = running->block->meetings[static_cast<size_t>(running->warp)];
  WarpMeeting& meeting = *find_meeting(meetings, operation, mask, site);
  meeting.arrived |= 1u << running->lane;
  meeting.arguments[running->lane] = arguments;
  meeting.lanes[running->lane] = running;
  if (meeting.arrived != mask) {
    wait_here("other lanes of its warp", site);
    return;
  }
  WarpMeeting full = meeting;
  meetings.erase(meetings.begin() + (&meeting - meetings.data()));
  if (function) function(full.arguments, mask);
  std::vector<Fiber*> fibers;
  for (Fiber* fiber : full.lanes) {
    if (fiber) fibers.push_back(fiber);
  }
  if (operation == WarpOperation::kSync) share_knowledge(fibers);
  for (Fiber* fiber : fibers) {
    if (fiber != running) wake(*fiber);
  }
}

void warp_sync(uint32_t mask, Where at) { meet_warp(WarpOperation::kSync, mask, nullptr, nullptr, at); }

uint32_t elect(Where at) {
  meet_warp(WarpOperation::kElect, kAllLanes, nullptr, nullptr, at);
  return running->lane == 0;
}

uint32_t ballot(uint32_t mask, int predicate, Where at) {
  Vote vote = {predicate, 0};
  meet_warp(WarpOperation::kBallot, mask, &vote, count_votes, at);
  return vote.result;
}

uint64_t shuffle_bits(Shuffle kind, uint32_t mask, uint64_t bits, int operand, int width, Where at) {
  Exchange mine = {bits, source_lane(kind, running->lane, operand, width), at, 0};
  meet_warp(WarpOperation::kShuffle, mask, &mine, exchange, at);
  return mine.result;
}

}  // namespace ik::host_cuda
