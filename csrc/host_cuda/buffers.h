// The checker's memory of global memory: the buffers that the tests announced.
#pragma once
#include <cstdint>
#include <vector>

#include "host_cuda/clocks.h"
#include "host_cuda/session.h"

namespace ik::host_cuda {

// One element, or 2 bytes of scratch memory. `sequence` counts clusters over the session; 0 is nobody.
struct GlobalCell {
  uint32_t write_sequence = 0;
  uint32_t read_sequence = 0;
  Time write_time = 0;
  Time read_time = 0;
  Agent writer = kNobody;
  Agent reader = kNobody;
  bool foreign = false;  // not an element of the view
};

struct TrackedBuffer {
  Buffer buffer;
  const char* begin;
  const char* end;
  size_t cell_bytes;
  std::vector<GlobalCell> cells;  // none for inputs
};

void track(const Buffer& buffer);
void forget_buffers();
// Elements of outputs that nobody has written.
void report_unwritten_outputs();

}  // namespace ik::host_cuda
