// The steps of a program as tasks of the kernels, every access checked against the memory that it is about.
#pragma once
#include <variant>
#include <vector>

#include "cpu/kernel_table.h"
#include "cpu/run_program_table.h"
#include "cpu/tiling.h"
#include "run_program.h"

namespace ik::cpu {

struct Step {
  const char* counter;
  bool begins_region;
  std::variant<ConvTask, SeparableTask, PoolTask, ElementwiseTask> task;
};

// Throws std::runtime_error where a step is malformed or leaves its memory. `arena` has header.arena_bytes bytes.
std::vector<Step> decode_steps(const ProgramRun& run, void* arena);

}  // namespace ik::cpu
