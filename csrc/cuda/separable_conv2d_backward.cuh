// The depthwise half of the gradient of separable_conv2d: the depthwise output again, the mask of the middle
// activation, and the gradients of the input, of the depthwise weight and of its bias.
#pragma once
#include "cuda/activation_gradient.cuh"
#include "cuda/block_rows.cuh"
#include "cuda/channel_lanes.cuh"
#include "cuda/column_sums.cuh"
#include "cuda/depthwise_3x3.cuh"

namespace ik::cuda {

constexpr int kElementThreads = 256;

// ---- weights [R * S][pitch] in float

struct DepthwisePack {
  WeightView weight;  // [C, 1, R, S]
  int C, S, taps, pitch;
  float* packed;
};

template <typename T>
__global__ void __launch_bounds__(kElementThreads) depthwise_pack_kernel(DepthwisePack args) {
  const int i = static_cast<int>(blockIdx.x) * kElementThreads + static_cast<int>(threadIdx.x);
  const int tap = i / args.pitch;
  const int c = i - tap * args.pitch;
  if (tap >= args.taps) return;
  const int r = tap / args.S;
  const WeightView& view = args.weight;
  const int64_t place = c * view.stride_k + r * view.stride_r + (tap - r * args.S) * view.stride_s;
  args.packed[i] = c < args.C ? to_float(static_cast<const T*>(view.data)[place]) : 0.0f;
}

// ---- the depthwise output before its activation

constexpr int kGatherPixels = 4;  // share one load of a tap's weights
constexpr int kGatherRounds = 2;  // of them for a thread

template <typename T>
struct DepthwiseForward {
  DepthwiseWindow window;
  PixelGrid grid;  // of the output
  Pixels<const T> x;
  Activation activation;
  const float* weights;  // [R * S][pitch]
  const float* bias;     // [C]; null = 0
  T* d;                  // [pixels][pitch]
  Activation mid_activation;
  T* activated;  // as d; null where it would be the same
  int pixels, C, pitch;
  int groups;
  bool is_3x3;
  PixelGrid quads;  // where is_3x3: of the output, four neighbours at a time
  int units;        // quads, or pixels
};

template <typename T, int kCount>
IK_DEVICE void store_outputs(const DepthwiseForward<T>& args, int64_t pixel, int channel, float (&values)[kCount]) {
  const int64_t place = pixel * args.pitch + channel;
  store_floats(args.d + place, values);
  if (args.activated == nullptr) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = rounded<T>(values[i]);
  activate(args.mid_activation, values);
  store_floats(args.activated + place, values);
}

template <typename T, int kCount>
IK_DEVICE void depthwise_forward_3x3(const DepthwiseForward<T>& args, const Place<kCount>& place) {
  const TapAxis& down = args.window.y;
  const TapAxis& across = args.window.x;
  const Source3x3<T> source{args.x,   down.input, across.input,
                            down.pad, across.pad, args.activation == Activation::kRelu};
  const int begin = place.tile * kGatherRounds * blockDim.y + threadIdx.y;
  for (int round = 0; round < kGatherRounds; ++round) {
    const int unit = begin + round * static_cast<int>(blockDim.y);
    if (unit >= args.units) return;
    Pixel first = args.quads.at(unit);
    first.q *= kGatherPixels;
    float sums[kGatherPixels][kCount];
#pragma unroll
    for (int j = 0; j < kGatherPixels; ++j) load_vector(args.bias, place.k, 0.0f, sums[j]);
    gather_3x3<false>(source, place.k, first, args.weights + place.k, args.pitch, sums);
    const int64_t pixel = (static_cast<int64_t>(first.n) * down.output + first.p) * across.output + first.q;
#pragma unroll
    for (int j = 0; j < kGatherPixels; ++j) {
      if (first.q + j < across.output) store_outputs(args, pixel + j, place.k, sums[j]);
    }
  }
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kChannelThreads, kBlocksPerMultiprocessor)
    depthwise_forward_kernel(DepthwiseForward<T> args) {
  const Place<kCount> place(args.C, args.groups);
  if (!place.inside) return;
  if constexpr (kCount > 1) {
    if (args.is_3x3) return depthwise_forward_3x3(args, place);
  }
  const int rows = blockDim.y;
  const int first = place.tile * rows * kGatherPixels * kGatherRounds + threadIdx.y;
  float bias[kCount];
  load_vector(args.bias, place.k, 0.0f, bias);
  for (int round = 0; round < kGatherRounds; ++round) {
    const int m = first + round * kGatherPixels * rows;
    Pixel pixels[kGatherPixels];
    bool wanted[kGatherPixels];
    float sums[kGatherPixels][kCount];
#pragma unroll
    for (int j = 0; j < kGatherPixels; ++j) {
      wanted[j] = m + j * rows < args.pixels;
      pixels[j] = args.grid.at(wanted[j] ? m + j * rows : 0);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[j][i] = bias[i];
    }
    gather_taps<false>(args.window, args.x, place.k, pixels, wanted, args.activation, args.weights + place.k,
                       args.pitch, sums);
#pragma unroll
    for (int j = 0; j < kGatherPixels; ++j) {
      if (wanted[j]) store_outputs(args, m + j * rows, place.k, sums[j]);
    }
  }
}

// ---- gradient *= activation'(d)

template <typename T>
struct DepthwiseMask {
  T* gradient;  // [pixels][pitch], as d
  const T* d;
  Activation activation;
  int64_t pixels;
  int C, pitch;
};

template <typename T>
__global__ void __launch_bounds__(kElementThreads) depthwise_mask_kernel(DepthwiseMask<T> args) {
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (pixel >= args.pixels) return;
  for (int c = threadIdx.x; c < args.C; c += blockDim.x) {
    const int64_t i = pixel * args.pitch + c;
    const float d[1] = {to_float(args.d[i])};
    float gradient[1] = {to_float(args.gradient[i])};
    multiply_by_slope(args.activation, d, gradient);
    args.gradient[i] = Element<T>::from_float(gradient[0]);
  }
}

// ---- gradients of the input and of the depthwise parameters

template <typename T>
struct DepthwiseBackward {
  DepthwiseWindow window;
  PixelGrid input, output;
  Pixels<const T> gradient;  // of the depthwise output
  Pixels<const T> x;
  Pixels<T> grad_x;  // data null = not wanted
  Activation activation;
  const float* weights;           // [R * S][pitch]
  float* partial;                 // [tiles][R * S + 1][C], the bias last; null = not wanted
  int input_units, output_units;  // pixels
  int input_tile, output_tile;
  int C, pitch;
  int groups;
  bool is_3x3;  // units are four neighbours then
};

// Where a tap lies from the window's first, in pixels and in elements of x.
struct alignas(16) Tap {
  int y, x, offset;
  int unused;
};

// Taps whose sums a thread keeps at a time: as many as the registers hold.
template <int kCount>
constexpr int kTapGroup = kCount == 8 ? 5 : 9;
constexpr int kOutside = 1 << 29;         // no image is so high
constexpr int kTapTable = kMostTaps + 9;  // the last group may reach beyond the window

template <typename T>
IK_DEVICE void fill_tap_table(const DepthwiseBackward<T>& args, Tap* table) {
  const int taps = args.window.R * args.window.S;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  if (thread < kTapTable) {
    const int r = thread / args.window.S;
    const int y = r * args.window.y.dilation;
    const int x = (thread - r * args.window.S) * args.window.x.dilation;
    const int offset = y * static_cast<int>(args.x.stride_h) + x * static_cast<int>(args.x.stride_w);
    table[thread] = thread < taps ? Tap{y, x, offset, 0} : Tap{kOutside, 0, 0, 0};
  }
  __syncthreads();
}

// Sums over the block's output pixels of gradient times x under a group of taps, and of the gradient.
template <typename T, int kCount>
IK_DEVICE void add_weight_gradients(const DepthwiseBackward<T>& args, const Place<kCount>& place, const Tap* taps,
                                    float (&sums)[kTapGroup<kCount>][kCount], float (&bias)[kCount]) {
  const int begin = place.tile * args.output_tile;
  const int end = args.output_units - begin > args.output_tile ? begin + args.output_tile : args.output_units;
  const TapAxis& down = args.window.y;
  const TapAxis& across = args.window.x;
  for (int m = begin + threadIdx.y; m < end; m += blockDim.y) {
    const Pixel pixel = args.output.at(m);
    float gradient[kCount];
    unpack(load_packet<T, kCount>(args.gradient.at(pixel) + place.k), gradient);
#pragma unroll
    for (int i = 0; i < kCount; ++i) bias[i] += gradient[i];
    const int y = pixel.p * static_cast<int>(down.stride.divisor) - down.pad;
    const int x = pixel.q * static_cast<int>(across.stride.divisor) - across.pad;
    const T* corner = args.x.data + pixel.n * args.x.stride_n + y * args.x.stride_h + x * args.x.stride_w + place.k;
#pragma unroll
    for (int j = 0; j < kTapGroup<kCount>; ++j) {
      const Tap tap = taps[j];
      Packet<T, kCount> packet = {};
      if (static_cast<unsigned>(y + tap.y) < static_cast<unsigned>(down.input) &&
          static_cast<unsigned>(x + tap.x) < static_cast<unsigned>(across.input)) {
        packet = load_packet<T, kCount>(corner + tap.offset);
      }
      float values[kCount];
      unpack_activated(packet, args.activation, values);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[j][i] = fmaf(gradient[i], values[i], sums[j][i]);
    }
  }
}

template <typename T, int kCount>
IK_DEVICE void store_grad_x(const DepthwiseBackward<T>& args, const Pixel& pixel, int channel,
                            float (&gradient)[kCount]) {
  float x[kCount];
  unpack(load_packet<T, kCount>(args.x.at(pixel) + channel), x);
  multiply_by_slope(args.activation, x, gradient);
  store_floats(args.grad_x.at(pixel) + channel, gradient);
}

template <typename T, int kCount>
IK_DEVICE void write_grad_x(const DepthwiseBackward<T>& args, const Place<kCount>& place) {
  const int begin = place.tile * args.input_tile;
  const int end = args.input_units - begin > args.input_tile ? begin + args.input_tile : args.input_units;
  const int rows = blockDim.y;
  for (int first = begin + threadIdx.y; first < end; first += kGatherPixels * rows) {
    Pixel pixels[kGatherPixels];
    bool wanted[kGatherPixels];
    float sums[kGatherPixels][kCount] = {};
#pragma unroll
    for (int j = 0; j < kGatherPixels; ++j) {
      wanted[j] = first + j * rows < end;
      pixels[j] = args.input.at(wanted[j] ? first + j * rows : first);
    }
    gather_taps<true>(args.window, args.gradient, place.k, pixels, wanted, Activation::kNone, args.weights + place.k,
                      args.pitch, sums);
#pragma unroll
    for (int j = 0; j < kGatherPixels; ++j) {
      if (wanted[j]) store_grad_x(args, pixels[j], place.k, sums[j]);
    }
  }
}

// Row r of the window. The tile's pixels are read again for each row, from the cache: nine rows of sums would not leave
// registers for four neighbours.
template <typename T, int kCount>
IK_DEVICE void add_weight_row_3x3(const DepthwiseBackward<T>& args, const Place<kCount>& place, int r,
                                  float (&sums)[kSide][kCount], float (&bias)[kCount]) {
  const int begin = place.tile * args.output_tile;
  const int end = args.output_units - begin > args.output_tile ? begin + args.output_tile : args.output_units;
  const TapAxis& down = args.window.y;
  const TapAxis& across = args.window.x;
  const Source3x3<T> source{args.x,   down.input, across.input,
                            down.pad, across.pad, args.activation == Activation::kRelu};
  for (int unit = begin + threadIdx.y; unit < end; unit += blockDim.y) {
    Pixel first = args.output.at(unit);
    first.q *= kGatherPixels;
    const int neighbours = across.output - first.q;
    const T* from = args.gradient.at(first) + place.k;
    float gradients[kGatherPixels][kCount];
#pragma unroll
    for (int j = 0; j < kGatherPixels; ++j) {
      unpack(Packet<T, kCount>{ldg128_or_zero(from + j * args.gradient.stride_w, j < neighbours)}, gradients[j]);
    }
    add_products_3x3(source, place.k, first, r, neighbours, gradients, sums);
    if (r != 0) continue;
#pragma unroll
    for (int j = 0; j < kGatherPixels; ++j) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) bias[i] += gradients[j][i];
    }
  }
}

template <typename T, int kCount>
IK_DEVICE void write_grad_x_3x3(const DepthwiseBackward<T>& args, const Place<kCount>& place) {
  const int begin = place.tile * args.input_tile;
  const int end = args.input_units - begin > args.input_tile ? begin + args.input_tile : args.input_units;
  const TapAxis& down = args.window.y;
  const TapAxis& across = args.window.x;
  const Source3x3<T> source{args.gradient,          down.output, across.output, kSide - 1 - down.pad,
                            kSide - 1 - across.pad, false};
  for (int unit = begin + threadIdx.y; unit < end; unit += blockDim.y) {
    Pixel first = args.input.at(unit);
    first.q *= kGatherPixels;
    float sums[kGatherPixels][kCount] = {};
    gather_3x3<true>(source, place.k, first, args.weights + place.k, args.pitch, sums);
#pragma unroll
    for (int j = 0; j < kGatherPixels; ++j) {
      if (first.q + j < across.input) store_grad_x(args, {first.n, first.p, first.q + j}, place.k, sums[j]);
    }
  }
}

// The tile's sums of one tap: row `tap` of [R * S + 1][C], the last row being the bias.
template <typename T, int kCount>
IK_DEVICE void store_sums(const DepthwiseBackward<T>& args, const Place<kCount>& place, int tap,
                          const float (&sums)[kCount]) {
  const int64_t row = static_cast<int64_t>(place.tile) * (args.window.R * args.window.S + 1) + tap;
  float* partial = args.partial + row * args.C + place.first;
  reduce_rows(sums, [&](int term, int lane, float sum) {
    const int channel = lane * kCount + term;
    if (place.first + channel < args.C) partial[channel] = sum;
  });
}

template <typename T, int kCount>
IK_DEVICE void reduce_weights_3x3(const DepthwiseBackward<T>& args, const Place<kCount>& place) {
  float bias[kCount] = {};
#pragma unroll 1
  for (int r = 0; r < kSide; ++r) {
    float sums[kSide][kCount] = {};
    if (place.inside) add_weight_row_3x3(args, place, r, sums, bias);
#pragma unroll
    for (int s = 0; s < kSide; ++s) store_sums(args, place, r * kSide + s, sums[s]);
  }
  store_sums(args, place, kSide * kSide, bias);
}

template <typename T, int kCount>
IK_DEVICE void reduce_weights(const DepthwiseBackward<T>& args, const Place<kCount>& place) {
  IK_SHARED(Tap, table, [kTapTable]);
  fill_tap_table(args, table);
  const int taps = args.window.R * args.window.S;
#pragma unroll 1
  for (int tap0 = 0; tap0 < taps; tap0 += kTapGroup<kCount>) {
    float sums[kTapGroup<kCount>][kCount] = {};
    float bias[kCount] = {};
    if (place.inside) add_weight_gradients(args, place, table + tap0, sums, bias);
#pragma unroll
    for (int j = 0; j < kTapGroup<kCount>; ++j) {
      if (tap0 + j < taps) store_sums(args, place, tap0 + j, sums[j]);
    }
    if (tap0 == 0) store_sums(args, place, taps, bias);
  }
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kChannelThreads, kBlocksPerMultiprocessor)
    depthwise_backward_kernel(DepthwiseBackward<T> args) {
  const Place<kCount> place(args.C, args.groups);
  const bool wants_weights = args.partial != nullptr;
  const bool wants_grad_x = args.grad_x.data != nullptr && place.inside;
  if constexpr (kCount > 1) {
    if (args.is_3x3) {
      if (wants_weights) reduce_weights_3x3(args, place);
      if (wants_grad_x) write_grad_x_3x3(args, place);
      return;
    }
  }
  if (wants_weights) reduce_weights(args, place);
  if (wants_grad_x) write_grad_x(args, place);
}

// ---- second stage: [tiles][R * S + 1][C] to [C][R * S] of the weight's dtype and [C] float

struct DepthwiseSums {
  const float* partial;
  int64_t tiles;
  int C, taps;
  void* grad_weight;  // null = not wanted
  float* grad_bias;   // null = not wanted
};

template <typename T>
__global__ void __launch_bounds__(kColumnThreads) depthwise_sums_kernel(DepthwiseSums args) {
  const int columns = (args.taps + 1) * args.C;
  const int column = static_cast<int>(blockIdx.x) * kColumns + static_cast<int>(threadIdx.x);
  double sums[1] = {};
  if (column < columns) {
#pragma unroll 8
    for (int64_t tile = threadIdx.y; tile < args.tiles; tile += kColumnRows) {
      sums[0] += args.partial[tile * columns + column];
    }
  }
  add_rows(sums);
  if (column >= columns || threadIdx.y != 0) return;
  const int tap = column / args.C;
  const int c = column - tap * args.C;
  const float sum = static_cast<float>(sums[0]);
  if (tap == args.taps) {
    if (args.grad_bias != nullptr) args.grad_bias[c] = sum;
  } else if (args.grad_weight != nullptr) {
    static_cast<T*>(args.grad_weight)[c * args.taps + tap] = Element<T>::from_float(sum);
  }
}

}  // namespace ik::cuda
