// run_program: a whole network's steps, one after the other or side by side, without Python between them. How a step is
// written as numbers is said by inception_kernels/graph/encode.py, the other end of this format.
#pragma once
#include <cstdint>
#include <vector>

#include "common/types.h"

namespace ik {

enum class StepKind : int64_t { kConv2d, kSeparable, kMaxPool, kAveragePool, kElementwise };
enum class Space : int64_t { kNone, kArena, kInput, kOutput };

// Activations [N, H, W, C] somewhere: `offset` and strides count elements. An input has its tensor's own strides; there
// the offset is its first channel, and stride_n its first image.
struct PlacedView {
  Space space;
  int64_t index;  // of the input or output
  int64_t offset;
  int64_t stride_n, stride_h, stride_w, stride_c;
};

// Constants are byte offsets into the constants; negative = none.
struct ProgramStep {
  int64_t kind;           // a StepKind
  int64_t begins_region;  // 0: needs nothing that a step of the same region writes
  int64_t activation, input_activation, mid_activation;
  // The window over x; elementwise steps have one of 1 x 1.
  int64_t N, C, H, W, K, R, S, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, P, Q;
  int64_t count_include_pad, divisor;  // of an average pool; divisor 0 = the window's size
  int64_t weight, second_weight, depthwise_bias, scale, shift;
  PlacedView x, residual, y;
};

struct ProgramHeader {
  int64_t magic, version;
  int64_t dtype;        // a DType, of everything
  int64_t arena_bytes;  // of intermediates
  int64_t steps;
};
constexpr int64_t kProgramMagic = 0x4d4152474f5250;  // "PROGRAM"
constexpr int64_t kProgramVersion = 2;

struct ProgramTensor {
  void* data;
  int64_t N, C, H, W;
  int64_t stride_n, stride_c, stride_h, stride_w;
};

struct ProgramRun {
  ProgramHeader header;
  const ProgramStep* steps;
  const char* constants;
  int64_t constant_bytes;
  std::vector<ProgramTensor> inputs, outputs;
};

namespace cpu {

// Throws std::runtime_error, before anything runs, where a step is not one or would leave its memory.
// seconds: [steps] or null; with it every step runs alone.
void run_program(const ProgramRun& run, double* seconds);

}  // namespace cpu
}  // namespace ik
