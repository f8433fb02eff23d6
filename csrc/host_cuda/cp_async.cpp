#include "host_cuda/machine.h"
#include "host_cuda/memory.h"

namespace ik::host_cuda {
namespace {

void perform(const ElementCopy& copy) {
  char* shared = static_cast<char*>(shared_pointer(copy.shared));
  memcpy(shared, copy.global, static_cast<size_t>(copy.bytes));
  memset(shared + copy.bytes, 0, static_cast<size_t>(copy.size - copy.bytes));
}

bool check(const ElementCopy& copy, const Site& site) {
  Loads& loads = running->loads;
  const size_t size = static_cast<size_t>(copy.size);
  if (copy.bytes < 0 || copy.bytes > copy.size) {
    report_fatal("cp.async", site, "%d of %d bytes", copy.bytes, copy.size);
    return false;
  }
  check_alignment(shared_pointer(copy.shared), size, "cp.async to shared memory", site);
  if (copy.bytes) check_alignment(copy.global, size, "cp.async from global memory", site);
  if (loads.agent == kNobody) loads.agent = new_agent("cp.async of " + agent_name(running->agent));
  return check_global(copy.global, static_cast<size_t>(copy.bytes), false, site) &&
         check_shared(copy.shared, size, true, {loads.agent, loads.now, &running->knowledge, true}, site);
}

// The oldest group has arrived.
void finish_group() {
  Loads& loads = running->loads;
  const Loads::Group& group = loads.committed.front();
  for (const ElementCopy& copy : group.copies) perform(copy);
  if (checked && loads.agent != kNobody) running->knowledge.learn(loads.agent, group.time);
  loads.committed.pop_front();
}

}  // namespace

void cp_async(uint32_t shared, const void* global, int size, int bytes, Where at) {
  const ElementCopy copy = {shared, global, size, bytes};
  if (checked && !check(copy, at)) return;
  if (!schedule.lazy) perform(copy);
  if (schedule.lazy || checked) running->loads.open.push_back(copy);
}

void cp_async_commit() { running->loads.commit(); }

void cp_async_wait(int pending) {
  while (static_cast<int>(running->loads.committed.size()) > pending) finish_group();
}

void end_copies() {
  if (running->loads.in_flight()) report("cp.async", Site(), "a thread ends with copies in flight");
  if (!running->stores.in_flight()) return;
  report("TMA store", Site(), "a thread ends with stores in flight that may still read shared memory");
  tma_store_commit();
  tma_store_wait(0);
}

}  // namespace ik::host_cuda
