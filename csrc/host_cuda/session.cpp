#include "host_cuda/session.h"

#include "host_cuda/buffers.h"
#include "host_cuda/machine.h"

namespace ik::host_cuda {

void begin(const Schedule& chosen, bool check) {
  schedule = chosen;
  checked = check;
  forget_buffers();
  take_reports();
}

void announce(const Buffer& buffer) { track(buffer); }

std::vector<std::string> end() {
  if (checked && !fatal_reported()) report_unwritten_outputs();
  forget_buffers();
  return take_reports();
}

}  // namespace ik::host_cuda
