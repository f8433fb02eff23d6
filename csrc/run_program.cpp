#include "run_program.h"

#include <torch/csrc/stable/library.h>

#include "common/checks.h"
#include "common/tensors.h"

namespace ik {
namespace {

ProgramTensor described(const Tensor& x) {
  return {x.mutable_data_ptr(), x.size(0),   x.size(1),   x.size(2),  x.size(3),
          x.stride(0),          x.stride(1), x.stride(2), x.stride(3)};
}

struct Checked {
  ProgramRun run;
  std::vector<Tensor> outputs;  // [N, C, H, W] channels-last
};

// The program's form; its steps are checked by those who run them.
Checked checked(const std::vector<Tensor>& inputs, const Tensor& program, const Tensor& constants,
                const std::vector<int64_t>& output_sizes) {
  using torch::headeronly::ScalarType;
  constexpr int64_t kHeader = sizeof(ProgramHeader) / sizeof(int64_t), kStep = sizeof(ProgramStep) / sizeof(int64_t);
  STD_TORCH_CHECK(program.is_cpu() && program.scalar_type() == ScalarType::Long && program.dim() == 1 &&
                      program.is_contiguous() && program.size(0) >= kHeader,
                  "program: expected a contiguous int64 vector of at least ", kHeader, " numbers on the CPU");
  STD_TORCH_CHECK(constants.is_cpu() && constants.scalar_type() == ScalarType::Byte && constants.dim() == 1 &&
                      constants.is_contiguous(),
                  "constants: expected a contiguous uint8 vector on the CPU");
  STD_TORCH_CHECK(!inputs.empty(), "inputs: expected at least one tensor");
  STD_TORCH_CHECK(output_sizes.size() % 4 == 0, "output_sizes: expected N, C, H, W of every output, got ",
                  output_sizes.size(), " numbers");
  Checked result;
  const int64_t* numbers = static_cast<const int64_t*>(program.const_data_ptr());
  result.run.header = *reinterpret_cast<const ProgramHeader*>(numbers);
  const ProgramHeader& header = result.run.header;
  STD_TORCH_CHECK(header.magic == kProgramMagic && header.version == kProgramVersion, "program: expected version ",
                  kProgramVersion, " of the program format");
  STD_TORCH_CHECK(
      header.steps >= 0 && header.steps <= program.size(0) / kStep && program.size(0) == kHeader + header.steps * kStep,
      "program: expected ", kStep, " numbers for each of its ", header.steps, " steps, got ",
      program.size(0) - kHeader);
  result.run.steps = reinterpret_cast<const ProgramStep*>(numbers + kHeader);
  result.run.constants = static_cast<const char*>(constants.const_data_ptr());
  result.run.constant_bytes = constants.size(0);
  for (const Tensor& input : inputs) {
    check_activations(input, "inputs");
    STD_TORCH_CHECK(static_cast<int64_t>(dtype_of(input, "inputs")) == header.dtype, "inputs: got ", describe(input),
                    ", but the program was made for another dtype");
    result.run.inputs.push_back(described(input));
  }
  for (size_t i = 0; i < output_sizes.size(); i += 4) {
    for (size_t d = i; d < i + 4; d++)
      STD_TORCH_CHECK(output_sizes[d] >= 0, "output_sizes: expected sizes, got ", output_sizes[d]);
    result.outputs.push_back(empty_activations(inputs[0], output_sizes[i], output_sizes[i + 1], output_sizes[i + 2],
                                               output_sizes[i + 3], true));
    result.run.outputs.push_back(described(result.outputs.back()));
  }
  return result;
}

}  // namespace

std::vector<Tensor> run_program(std::vector<Tensor> inputs, const Tensor& program, const Tensor& constants,
                                std::vector<int64_t> output_sizes) {
  const Checked call = checked(inputs, program, constants, output_sizes);
  cpu::run_program(call.run, nullptr);
  return call.outputs;
}

// Seconds [steps] float64 of a run in which every step has the machine for itself.
Tensor time_program(std::vector<Tensor> inputs, const Tensor& program, const Tensor& constants,
                    std::vector<int64_t> output_sizes) {
  const Checked call = checked(inputs, program, constants, output_sizes);
  Tensor seconds = empty_cpu({call.run.header.steps}, torch::headeronly::ScalarType::Double);
  cpu::run_program(call.run, static_cast<double*>(seconds.mutable_data_ptr()));
  return seconds;
}

STABLE_TORCH_LIBRARY_IMPL(inception_kernels, CPU, m) {
  m.impl("run_program", TORCH_BOX(&run_program));
  m.impl("time_program", TORCH_BOX(&time_program));
}

}  // namespace ik
