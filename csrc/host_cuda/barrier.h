// Barriers of a block, named or not, and of a cluster.
#pragma once
#include <vector>

#include "host_cuda/clocks.h"
#include "host_cuda/report.h"

namespace ik::host_cuda {

struct Fiber;

struct Barrier {
  std::vector<Fiber*> waiting;
  std::vector<Fiber*> arrived;  // and gone on
  int expected = 0;
  bool whole_block = false;
  Site site;          // of the first who came
  Knowledge arrival;  // of those who have gone on

  bool idle() const { return waiting.empty() && arrived.empty(); }
};

void complete(Barrier& barrier);
// The running thread has ended: nobody waits for it any more.
void leave_block_barrier();
void leave_cluster_barrier();
// All know what each of them knew.
void share_knowledge(const std::vector<Fiber*>& fibers, Knowledge common = {});

}  // namespace ik::host_cuda
