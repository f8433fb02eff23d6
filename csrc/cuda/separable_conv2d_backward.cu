#include <algorithm>
#include <utility>

#include "common/counters.h"
#include "conv2d_bn_act.h"
#include "cuda/separable_conv2d_backward.cuh"
#include "cuda/separable_conv2d_backward_weight.h"
#include "cuda/storage_type.h"
#include "separable_conv2d.h"

namespace ik::cuda {
namespace {

constexpr int64_t kInt32 = int64_t{1} << 31;
constexpr int64_t kPitchStep = 8;

int64_t element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }
int64_t input_pixels(const ConvShape& s) { return s.N * s.H * s.W; }
int64_t output_pixels(const ConvShape& s) { return s.N * s.P() * s.Q(); }
int64_t pitch_of(const ConvShape& s) { return divide_up(s.C, kPitchStep) * kPitchStep; }

bool wants_depthwise(const SeparableBackward& args) { return args.grad_depthwise_weight || args.grad_depthwise_bias; }
bool wants_gradient(const SeparableBackward& args) { return args.grad_x.data || wants_depthwise(args); }
bool wants_output(const SeparableBackward& args) {
  return args.grad_pointwise_weight || (wants_gradient(args) && args.mid_activation != Activation::kNone);
}
bool wants_activated(const SeparableBackward& args) {
  return args.grad_pointwise_weight && args.mid_activation != Activation::kNone;
}

NhwcOutput dense_view(const ConvShape& s, void* data) {
  const int64_t pitch = pitch_of(s);
  return {data, s.P() * s.Q() * pitch, s.Q() * pitch, pitch};
}
NhwcInput as_input(const NhwcOutput& view) { return {view.data, view.stride_n, view.stride_h, view.stride_w}; }

// grad_z times the pointwise weight: a 1 x 1 convolution from K to C channels.
Conv2dForward pointwise_data(const SeparableBackward& args, const void* packed, void* gradient) {
  const ConvShape& s = args.shape;
  Conv2dForward conv{};
  conv.shape = {s.N, s.K, s.P(), s.Q(), s.C, 1, 1, 1, 1, 0, 0, 1, 1};
  conv.dtype = args.dtype;
  conv.x = args.grad_z;
  conv.packed_weight = packed;
  conv.activation = Activation::kNone;
  conv.y = dense_view(s, gradient);
  return conv;
}

PointwiseWeightGradient pointwise_weight(const SeparableBackward& args, const void* input) {
  const ConvShape& s = args.shape;
  return {s.N, s.P(), s.Q(), s.K, s.C, args.dtype, args.grad_z, input, pitch_of(s), args.grad_pointwise_weight};
}

// Stride and dilation 1, and an activation that is one instruction for two channels.
bool is_3x3(const SeparableBackward& args, int count) {
  const ConvShape& s = args.shape;
  const bool window =
      s.R == kSide && s.S == kSide && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 && s.dilation_w == 1;
  return count > 1 && window &&
         (args.input_activation == Activation::kNone || args.input_activation == Activation::kRelu);
}

// How the depthwise backward kernel cuts the output. What a block reads should stay in its cache for the next pass: few
// channels, in whole lines of 128 bytes, and few pixels.
struct BackwardPlan {
  static constexpr int kLanes = 8;
  static constexpr int kPixels = 8;  // of a thread
  static constexpr int64_t kBlocks = 16384;
  bool neighbours;  // units of four pixels
  ChannelLanes threads;
  TiledPixels tiled;

  BackwardPlan(const SeparableBackward& args, int count)
      : neighbours(is_3x3(args, count)),
        threads(args.shape.C, count, kLanes),
        tiled(args.shape.N * args.shape.P() * columns(args.shape.Q()), threads,
              neighbours ? kPixels / kGatherPixels : kPixels, kBlocks) {}
  int64_t columns(int64_t width) const { return neighbours ? divide_up(width, kGatherPixels) : width; }
};

// How many channels a thread takes depends on the tensors' alignment.
int64_t depthwise_partial_floats(const SeparableBackward& args) {
  const ConvShape& s = args.shape;
  int64_t tiles = 0;
  for (int count : {1, 4, 8}) tiles = std::max(tiles, BackwardPlan(args, count).tiled.tiles);
  return tiles * (s.R * s.S + 1) * s.C;
}

// Parts of the workspace, in bytes from its beginning.
struct Layout {
  size_t weights, d, activated, packed, conv, gradient, partial;
  size_t bytes = 0;

  Layout(const SeparableBackward& args, const Context& context) {
    const ConvShape& s = args.shape;
    const size_t tensor = static_cast<size_t>(output_pixels(s) * pitch_of(s) * element_bytes(args.dtype));
    weights = take(static_cast<size_t>(s.R * s.S * pitch_of(s)) * sizeof(float));
    d = take(wants_output(args) ? tensor : 0);
    activated = take(wants_activated(args) ? tensor : 0);
    const Conv2dForward data = pointwise_data(args, nullptr, nullptr);
    packed = take(wants_gradient(args) ? conv2d_packed_bytes(data.shape, args.dtype) : 0);
    conv = take(wants_gradient(args) ? conv2d_workspace_bytes(data, false, context) : 0);
    gradient = take(wants_gradient(args) ? tensor : 0);
    size_t sums = 0;
    if (args.grad_pointwise_weight) {
      sums = pointwise_weight_workspace_bytes(pointwise_weight(args, nullptr), context);
    }
    if (wants_depthwise(args)) {
      sums = std::max(sums, static_cast<size_t>(depthwise_partial_floats(args)) * sizeof(float));
    }
    partial = take(sums);
  }

 private:
  size_t take(size_t size) {
    constexpr size_t kAlignment = 256;
    const size_t begin = bytes;
    bytes += (size + kAlignment - 1) / kAlignment * kAlignment;
    return begin;
  }
};

template <typename T>
void pack_weights(const SeparableBackward& args, float* packed, const Context& context) {
  const ConvShape& s = args.shape;
  const int taps = static_cast<int>(s.R * s.S);
  const int pitch = static_cast<int>(pitch_of(s));
  const DepthwisePack pack{args.depthwise_weight, static_cast<int>(s.C), static_cast<int>(s.S), taps, pitch, packed};
  const dim3 grid(static_cast<unsigned>(divide_up(static_cast<int64_t>(taps) * pitch, kElementThreads)));
  IK_LAUNCH(depthwise_pack_kernel<T>, grid, dim3(kElementThreads), 0, context, pack);
}

template <typename T>
constexpr int kPacketOf = 16 / static_cast<int>(sizeof(T));

template <typename T, int kCount>
void depthwise_forward(const SeparableBackward& args, const float* weights, void* d, void* activated,
                       const Context& context) {
  const ConvShape& s = args.shape;
  const ChannelLanes threads(s.C, kCount);
  DepthwiseForward<T> kernel{};
  kernel.window = depthwise_window(s);
  kernel.grid = PixelGrid{FastDivide(s.P()), FastDivide(s.Q())};
  kernel.x = pixels_of<T>(args.x);
  kernel.activation = args.input_activation;
  kernel.weights = weights;
  kernel.bias = static_cast<const float*>(args.depthwise_bias);
  kernel.d = static_cast<T*>(d);
  kernel.mid_activation = args.mid_activation;
  kernel.activated = static_cast<T*>(activated);
  kernel.pixels = static_cast<int>(output_pixels(s));
  kernel.C = static_cast<int>(s.C);
  kernel.pitch = static_cast<int>(pitch_of(s));
  kernel.groups = threads.groups;
  kernel.is_3x3 = is_3x3(args, kCount);
  const int64_t quads = divide_up(s.Q(), kGatherPixels);
  kernel.quads = PixelGrid{FastDivide(s.P()), FastDivide(quads)};
  const int64_t units = kernel.is_3x3 ? s.N * s.P() * quads : divide_up(output_pixels(s), kGatherPixels);
  kernel.units = static_cast<int>(units);
  const int64_t tiles = divide_up(units, static_cast<int64_t>(threads.rows()) * kGatherRounds);
  IK_LAUNCH((depthwise_forward_kernel<T, kCount>), tile_grid(tiles, threads.groups), threads.block(), 0, context,
            kernel);
}

template <typename T>
void mask(const SeparableBackward& args, void* gradient, const void* d, const Context& context) {
  const ConvShape& s = args.shape;
  const DepthwiseMask<T> kernel{static_cast<T*>(gradient), static_cast<const T*>(d), args.mid_activation,
                                output_pixels(s),          static_cast<int>(s.C),    static_cast<int>(pitch_of(s))};
  const ChannelLanes threads(s.C, 1);
  const dim3 grid(static_cast<unsigned>(divide_up(output_pixels(s), threads.rows())));
  IK_LAUNCH(depthwise_mask_kernel<T>, grid, threads.block(), 0, context, kernel);
}

template <typename T>
void add_depthwise_sums(const SeparableBackward& args, const float* partial, int64_t tiles, const Context& context) {
  const ConvShape& s = args.shape;
  const int taps = static_cast<int>(s.R * s.S);
  const DepthwiseSums sums{partial,
                           tiles,
                           static_cast<int>(s.C),
                           taps,
                           args.grad_depthwise_weight,
                           static_cast<float*>(args.grad_depthwise_bias)};
  const dim3 grid(static_cast<unsigned>(divide_up((taps + 1) * s.C, kColumns)));
  IK_LAUNCH(depthwise_sums_kernel<T>, grid, dim3(kColumns, kColumnRows), 0, context, sums);
}

template <typename T, int kCount>
void depthwise_backward(const SeparableBackward& args, const float* weights, void* gradient, float* partial,
                        const Context& context) {
  const ConvShape& s = args.shape;
  const BackwardPlan plan(args, kCount);
  const int64_t tiles = plan.tiled.tiles;
  DepthwiseBackward<T> kernel{};
  kernel.window = depthwise_window(s);
  kernel.is_3x3 = plan.neighbours;
  kernel.input = PixelGrid{FastDivide(s.H), FastDivide(plan.columns(s.W))};
  kernel.output = PixelGrid{FastDivide(s.P()), FastDivide(plan.columns(s.Q()))};
  kernel.input_units = static_cast<int>(s.N * s.H * plan.columns(s.W));
  kernel.output_units = static_cast<int>(s.N * s.P() * plan.columns(s.Q()));
  kernel.input_tile = static_cast<int>(divide_up(kernel.input_units, tiles));
  kernel.output_tile = static_cast<int>(plan.tiled.tile_pixels);
  kernel.gradient = pixels_of<T>(as_input(dense_view(s, gradient)));
  kernel.x = pixels_of<T>(args.x);
  kernel.grad_x = pixels_of<T>(args.grad_x);
  kernel.activation = args.input_activation;
  kernel.weights = weights;
  kernel.partial = wants_depthwise(args) ? partial : nullptr;
  kernel.C = static_cast<int>(s.C);
  kernel.pitch = static_cast<int>(pitch_of(s));
  kernel.groups = plan.threads.groups;
  IK_LAUNCH((depthwise_backward_kernel<T, kCount>), tile_grid(tiles, plan.threads.groups), plan.threads.block(), 0,
            context, kernel);
  if (wants_depthwise(args)) add_depthwise_sums<T>(args, partial, tiles, context);
}

template <typename T>
bool fits_packets(const SeparableBackward& args) {
  return args.shape.C % kPacketOf<T> == 0 && is_aligned<T>(args.x) && is_aligned<T>(args.grad_x);
}

template <typename T, int kCount>
void run(const SeparableBackward& args, char* workspace, const Context& context) {
  const Layout layout(args, context);
  float* weights = reinterpret_cast<float*>(workspace + layout.weights);
  float* partial = reinterpret_cast<float*>(workspace + layout.partial);
  void* d = workspace + layout.d;
  void* gradient = workspace + layout.gradient;
  pack_weights<T>(args, weights, context);
  void* activated = wants_activated(args) ? workspace + layout.activated : nullptr;
  if (wants_output(args)) depthwise_forward<T, kCount>(args, weights, d, activated, context);
  if (args.grad_pointwise_weight) {
    pointwise_weight_gradient(pointwise_weight(args, activated ? activated : d), partial, context);
  }
  if (!wants_gradient(args)) return;
  void* packed = workspace + layout.packed;
  const Conv2dForward data = pointwise_data(args, packed, gradient);
  WeightView transposed = args.pointwise_weight;
  std::swap(transposed.stride_k, transposed.stride_c);
  conv2d_pack(data.shape, args.dtype, transposed, packed, context);
  conv2d_forward(data, workspace + layout.conv, context);
  if (args.mid_activation != Activation::kNone) mask<T>(args, gradient, d, context);
  depthwise_backward<T, kCount>(args, weights, gradient, partial, context);
}

bool is_empty(const ConvShape& s) { return output_pixels(s) == 0 || s.C == 0 || s.K == 0; }

}  // namespace

const char* separable_backward_unsupported(const SeparableBackward& args, const Context& context) {
  const ConvShape& s = args.shape;
  if (args.dtype == DType::kFloat64) return "float64 runs on the reference backend";
  if (context.sm < 80) return "compute capability below 8.0";
  if (s.R * s.S > kMostTaps) return "a depthwise window of more than 64 taps";
  if (input_pixels(s) >= kInt32 || output_pixels(s) >= kInt32) return "2^31 pixels or more";
  const int64_t reach = s.H + 2 * s.pad_h + s.R * s.dilation_h;
  if (reach * std::max(args.x.stride_h, s.Q() * pitch_of(s)) >= kInt32) return "an image of 2^31 elements or more";
  if (s.R * s.S * pitch_of(s) >= kInt32) return "too many channels";
  return conv2d_unsupported(pointwise_data(args, nullptr, nullptr), context);
}

size_t separable_backward_workspace_bytes(const SeparableBackward& args, const Context& context) {
  return is_empty(args.shape) ? 0 : Layout(args, context).bytes;
}

void separable_backward(const SeparableBackward& args, void* workspace, const Context& context) {
  if (is_empty(args.shape)) return;
  count_kernel(name_by_dtype(args.dtype, "separable_conv2d.backward.cuda_bf16", "separable_conv2d.backward.cuda_f16",
                             "separable_conv2d.backward.cuda_f32"));
  with_storage_type(args.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    if (fits_packets<T>(args))
      run<T, kPacketOf<T>>(args, static_cast<char*>(workspace), context);
    else
      run<T, 1>(args, static_cast<char*>(workspace), context);
  });
}

}  // namespace ik::cuda
