// A checked run as the tests see it: buffers are announced, kernels run, reports come back.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace ik::host_cuda {

// The order in which threads run between two synchronisation points, and when asynchronous copies happen.
struct Schedule {
  int order = 0;     // 0: ascending, 1: descending, else the seed of a shuffle
  bool lazy = true;  // copies happen as late as the kernel's waits allow, else at once
};

enum class Access { kInput, kOutput, kUpdated, kScratch };

// A tensor that kernels may touch. Outputs and scratch are poisoned; every element of an output, and of one that is
// updated, must be written once.
struct Buffer {
  std::string name;
  Access access;
  void* data;
  int64_t element_size;
  std::vector<int64_t> sizes, strides;  // elements
};

// A launch as its launcher asked for it.
struct Launched {
  std::string kernel;  // the mangled name, the same for nvcc
  int threads;
  int64_t shared, shared_limit;  // bytes: of dynamic shared memory, and what the device has for a block
};
extern std::vector<Launched> launched;  // of the run
extern bool executes;                   // the kernels that are launched

void begin(const Schedule& schedule, bool checked, bool executes);
void announce(const Buffer& buffer);
std::vector<std::string> end();

}  // namespace ik::host_cuda
