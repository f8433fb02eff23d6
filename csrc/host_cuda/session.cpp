#include "host_cuda/session.h"

#include "host_cuda/buffers.h"
#include "host_cuda/machine.h"

namespace ik::host_cuda {

std::vector<Launched> launched;
bool executes = true;

void begin(const Schedule& chosen, bool check, bool execute) {
  schedule = chosen;
  checked = check && execute;
  executes = execute;
  launched.clear();
  forget_buffers();
  take_reports();
}

void announce(const Buffer& buffer) {
  if (executes) track(buffer);
}

std::vector<std::string> end() {
  if (checked && !fatal_reported()) report_unwritten_outputs();
  forget_buffers();
  return take_reports();
}

}  // namespace ik::host_cuda
