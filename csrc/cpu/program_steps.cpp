#include "cpu/program_steps.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "conv2d_bn_act.h"
#include "cpu/isa.h"
#include "cpu/packed_weight.h"
#include "separable_conv2d.h"

namespace ik::cpu {
namespace {

constexpr int64_t kLargest = int64_t{1} << 31;  // of a size or stride: products of two fit 64 bits

int64_t element_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }
int64_t accumulator_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

class Decoder {
 public:
  Decoder(const ProgramRun& run, void* arena)
      : run_(run),
        arena_(static_cast<char*>(arena)),
        dtype_(static_cast<DType>(run.header.dtype)),
        kernels_(kernel_table(dtype_)),
        program_kernels_(program_table(dtype_)),
        images_(run.inputs.size()) {}

  std::vector<Step> run() {
    std::vector<Step> steps;
    std::vector<bool> written(run_.outputs.size());
    steps.reserve(run_.header.steps);
    for (index_ = 0; index_ < run_.header.steps; index_++) {
      const ProgramStep& from = run_.steps[index_];
      steps.push_back(step(from));
      if (from.y.space == Space::kOutput) written[from.y.index] = true;
    }
    for (size_t i = 0; i < written.size(); i++)
      if (!written[i]) throw std::runtime_error("program: no step writes output " + std::to_string(i));
    for (size_t i = 0; i < images_.size(); i++)
      if (images_[i] != run_.inputs[i].N)
        throw std::runtime_error("program: its steps read " + std::to_string(images_[i]) + " images of input " +
                                 std::to_string(i) + ", which has " + std::to_string(run_.inputs[i].N));
    return steps;
  }

 private:
  void require(bool condition, const char* what) const {
    if (!condition) throw std::runtime_error("program, step " + std::to_string(index_) + ": " + what);
  }

  Step step(const ProgramStep& s) {
    require(s.kind >= 0 && s.kind <= static_cast<int64_t>(StepKind::kElementwise), "unknown kind");
    for (const int64_t code : {s.activation, s.input_activation, s.mid_activation})
      require(code >= 0 && code <= static_cast<int64_t>(Activation::kSilu), "unknown activation");
    for (const int64_t size :
         {s.C, s.H, s.W, s.K, s.R, s.S, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w, s.P, s.Q})
      require(size >= 1 && size < kLargest, "expected sizes, strides and dilations of at least 1");
    for (const int64_t size : {s.N, s.pad_h, s.pad_w, s.divisor})
      require(size >= 0 && size < kLargest, "expected batch, padding and divisor of at least 0");
    const bool begins_region = s.begins_region != 0 || index_ == 0;
    switch (static_cast<StepKind>(s.kind)) {
      case StepKind::kConv2d:
        return {conv_kernels(kernels_, geometry(s)).counter, begins_region, conv(s)};
      case StepKind::kSeparable:
        return {separable_kernels(kernels_, geometry(s)).counter, begins_region, separable(s)};
      case StepKind::kMaxPool:
        return {program_kernels_.max_pool_counter, begins_region, pool(s)};
      case StepKind::kAveragePool:
        return {program_kernels_.average_pool_counter, begins_region, pool(s)};
      default:
        return {program_kernels_.elementwise_counter, begins_region, elementwise(s)};
    }
  }

  ConvTask conv(const ProgramStep& s) {
    const ConvShape shape = conv_shape(s);
    ConvTask task;
    task.geometry = geometry_of(shape);
    task.x = adjacent(s.x, s.N, s.H, s.W, s.C);
    task.weight = packed_payload(kernels_, PackedKind::kConv2d, shape,
                                 constant(s.weight, conv2d_packed_bytes(shape, dtype_), kPackedHeaderBytes));
    task.epilogue = epilogue(s);
    return task;
  }

  SeparableTask separable(const ProgramStep& s) {
    const ConvShape shape = conv_shape(s);
    SeparableTask task;
    task.geometry = geometry_of(shape);
    task.x = adjacent(s.x, s.N, s.H, s.W, s.C);
    task.depthwise =
        packed_payload(kernels_, PackedKind::kDepthwise, shape,
                       constant(s.weight, separable_packed_depthwise_bytes(shape, dtype_), kPackedHeaderBytes));
    task.pointwise =
        packed_payload(kernels_, PackedKind::kPointwise, shape,
                       constant(s.second_weight, separable_packed_pointwise_bytes(shape, dtype_), kPackedHeaderBytes));
    task.depthwise_bias = vector(s.depthwise_bias, s.C);
    task.input_activation = static_cast<Activation>(s.input_activation);
    task.mid_activation = static_cast<Activation>(s.mid_activation);
    task.epilogue = epilogue(s);
    return task;
  }

  PoolTask pool(const ProgramStep& s) {
    require(s.C == s.K, "a pool has as many output as input channels");
    require(2 * s.pad_h <= s.dilation_h * (s.R - 1) + 1 && 2 * s.pad_w <= s.dilation_w * (s.S - 1) + 1,
            "expected padding of at most half of the window");
    require((s.P - 1) * s.stride_h < s.H + s.pad_h && (s.Q - 1) * s.stride_w < s.W + s.pad_w,
            "a window of the pool starts outside of the image");
    return {geometry(s), adjacent(s.x, s.N, s.H, s.W, s.C), s.count_include_pad != 0, s.divisor, epilogue(s)};
  }

  ElementwiseTask elementwise(const ProgramStep& s) {
    require(s.C == s.K && s.P == s.H && s.Q == s.W, "an elementwise step has an output like its input");
    int64_t stride_c = 1;
    const NhwcInput x = input(s.x, s.N, s.H, s.W, s.C, &stride_c);
    return {geometry(s), x, stride_c, epilogue(s)};
  }

  static Geometry geometry(const ProgramStep& s) {
    return {s.N,        s.C,     s.H,     s.W,          s.K,          s.R, s.S, s.stride_h,
            s.stride_w, s.pad_h, s.pad_w, s.dilation_h, s.dilation_w, s.P, s.Q};
  }

  ConvShape conv_shape(const ProgramStep& s) const {
    const ConvShape shape{s.N,        s.C,        s.H,     s.W,     s.K,          s.R,         s.S,
                          s.stride_h, s.stride_w, s.pad_h, s.pad_w, s.dilation_h, s.dilation_w};
    require(s.H + 2 * s.pad_h >= s.dilation_h * (s.R - 1) + 1 && s.W + 2 * s.pad_w >= s.dilation_w * (s.S - 1) + 1 &&
                shape.P() == s.P && shape.Q() == s.Q,
            "the output is not of the size that the window gives");
    return shape;
  }

  Epilogue epilogue(const ProgramStep& s) {
    Epilogue result{};
    result.scale = vector(s.scale, s.K);
    result.shift = vector(s.shift, s.K);
    result.activation = static_cast<Activation>(s.activation);
    if (s.residual.space != Space::kNone) result.residual = adjacent(s.residual, s.N, s.P, s.Q, s.K);
    const PlacedView& y = s.y;
    require(y.space == Space::kArena || y.space == Space::kOutput, "y: expected a place in the arena or an output");
    result.y = {place(y, s.N, s.P, s.Q, s.K), y.stride_n, y.stride_h, y.stride_w};
    return result;
  }

  // ---- memory

  const char* constant(int64_t offset, size_t bytes, int64_t alignment) const {
    require(offset >= 0 && offset % alignment == 0 && offset <= run_.constant_bytes &&
                static_cast<int64_t>(bytes) <= run_.constant_bytes - offset,
            "a constant lies outside of the constants");
    return run_.constants + offset;
  }

  const void* vector(int64_t offset, int64_t length) const {
    if (offset < 0) return nullptr;
    return constant(offset, length * accumulator_bytes(dtype_), accumulator_bytes(dtype_));
  }

  // Of a view in the arena or an output.
  void* place(const PlacedView& view, int64_t N, int64_t H, int64_t W, int64_t C) const {
    char* base = arena_;
    int64_t elements = run_.header.arena_bytes / element_bytes(dtype_);
    if (view.space == Space::kOutput) {
      require(view.index >= 0 && view.index < static_cast<int64_t>(run_.outputs.size()), "no such output");
      const ProgramTensor& output = run_.outputs[view.index];
      base = static_cast<char*>(output.data);
      elements = output.N * output.C * output.H * output.W;
    }
    require(view.stride_c == 1, "expected adjacent channels");
    __extension__ typedef __int128 Wide;
    Wide last = view.offset;
    const int64_t sizes[] = {N, H, W, C}, strides[] = {view.stride_n, view.stride_h, view.stride_w, view.stride_c};
    require(view.offset >= 0, "expected an offset of at least 0");
    for (int d = 0; d < 4; d++) {
      require(strides[d] >= 0, "expected strides of at least 0");
      if (sizes[d] > 0) last += static_cast<Wide>(sizes[d] - 1) * strides[d];
    }
    require(last < elements || N == 0, "a view leaves its memory");
    return base + view.offset * element_bytes(dtype_);
  }

  NhwcInput input(const PlacedView& view, int64_t N, int64_t H, int64_t W, int64_t C, int64_t* stride_c) {
    require(view.space == Space::kArena || view.space == Space::kInput || view.space == Space::kOutput,
            "expected a place in the arena, an input or an output");
    if (view.space != Space::kInput) return {place(view, N, H, W, C), view.stride_n, view.stride_h, view.stride_w};
    require(view.index >= 0 && view.index < static_cast<int64_t>(run_.inputs.size()), "no such input");
    const ProgramTensor& x = run_.inputs[view.index];
    const int64_t first = view.stride_n;
    require(first >= 0 && first <= x.N && N <= x.N - first && x.H == H && x.W == W,
            "an input is of another shape than the program was made for");
    images_[view.index] = std::max(images_[view.index], first + N);
    require(view.offset >= 0 && view.offset <= x.C && C <= x.C - view.offset, "an input has too few channels");
    *stride_c = C == 1 ? 1 : x.stride_c;
    const int64_t offset = first * x.stride_n + view.offset * x.stride_c;
    return {static_cast<const char*>(x.data) + offset * element_bytes(dtype_), x.stride_n, x.stride_h, x.stride_w};
  }

  NhwcInput adjacent(const PlacedView& view, int64_t N, int64_t H, int64_t W, int64_t C) {
    int64_t stride_c = 1;
    const NhwcInput result = input(view, N, H, W, C, &stride_c);
    require(stride_c == 1, "expected an input with adjacent channels");
    return result;
  }

  const ProgramRun& run_;
  char* const arena_;
  const DType dtype_;
  const KernelTable& kernels_;
  const ProgramTable& program_kernels_;
  std::vector<int64_t> images_;  // of every input, that a step reads
  int64_t index_ = 0;
};

}  // namespace

std::vector<Step> decode_steps(const ProgramRun& run, void* arena) { return Decoder(run, arena).run(); }

const ProgramTable& program_table(DType dtype) { return IK_TABLE_BY_ISA(program_table, dtype); }

}  // namespace ik::cpu
