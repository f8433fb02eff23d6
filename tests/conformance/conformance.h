// Runs one primitive on given bits: the same code on a GPU, which records what the hardware does, and executed on the
// host, which must do the same.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/context.h"

namespace ik::conformance {

// Buffers are device memory (on the host plain memory), aligned to 256 bytes; `numbers` are the case's parameters.
struct Request {
  std::string name;
  std::vector<int> numbers;
  const void* input;
  void* output;
  cuda::Context context;
};

// False where there is no such case. Throw std::runtime_error where a launch fails.
bool run(const Request& request);
bool run_sm90(const Request& request);

}  // namespace ik::conformance
