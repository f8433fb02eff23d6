// The depthwise half of the gradient of separable_conv2d: the depthwise output again, the mask of the middle
// activation, and the gradients of the input, of the depthwise weight and of its bias.
#pragma once
#include "cuda/activation_gradient.cuh"
#include "cuda/block_rows.cuh"
#include "cuda/channel_lanes.cuh"
#include "cuda/column_sums.cuh"
#include "cuda/depthwise_taps.cuh"

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
};

template <typename T, int kCount>
__global__ void __launch_bounds__(kChannelThreads, kBlocksPerMultiprocessor)
    depthwise_forward_kernel(DepthwiseForward<T> args) {
  const Place<kCount> place(args.C, args.groups);
  if (!place.inside) return;
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
      if (!wanted[j]) continue;
      const int64_t place_in_d = static_cast<int64_t>(m + j * rows) * args.pitch + place.k;
      store_floats(args.d + place_in_d, sums[j]);
      if (args.activated == nullptr) continue;
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[j][i] = rounded<T>(sums[j][i]);
      activate(args.mid_activation, sums[j]);
      store_floats(args.activated + place_in_d, sums[j]);
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
  const float* weights;  // [R * S][pitch]
  float* partial;        // [tiles][R * S + 1][C], the bias last; null = not wanted
  int input_pixels, output_pixels;
  int input_tile, output_tile;  // pixels
  int C, pitch;
  int groups;
};

// Where a tap lies from the window's first, in pixels and in elements of x.
struct alignas(16) Tap {
  int y, x, offset;
  int unused;
};

constexpr int kTapGroup = 9;       // taps whose sums a thread keeps at a time
constexpr int kOutside = 1 << 29;  // no image is so high
constexpr int kTapTable = kMostTaps + kTapGroup;

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

// Sums over the block's output pixels of gradient times x under kTapGroup taps, and of the gradient.
template <typename T, int kCount>
IK_DEVICE void add_weight_gradients(const DepthwiseBackward<T>& args, const Place<kCount>& place, const Tap* taps,
                                    float (&sums)[kTapGroup][kCount], float (&bias)[kCount]) {
  const int begin = place.tile * args.output_tile;
  const int end = args.output_pixels - begin > args.output_tile ? begin + args.output_tile : args.output_pixels;
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
    for (int j = 0; j < kTapGroup; ++j) {
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
IK_DEVICE void write_grad_x(const DepthwiseBackward<T>& args, const Place<kCount>& place) {
  const int begin = place.tile * args.input_tile;
  const int end = args.input_pixels - begin > args.input_tile ? begin + args.input_tile : args.input_pixels;
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
      if (!wanted[j]) continue;
      float x[kCount];
      unpack(load_packet<T, kCount>(args.x.at(pixels[j]) + place.k), x);
      multiply_by_slope(args.activation, x, sums[j]);
      store_floats(args.grad_x.at(pixels[j]) + place.k, sums[j]);
    }
  }
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kChannelThreads, kBlocksPerMultiprocessor)
    depthwise_backward_kernel(DepthwiseBackward<T> args) {
  IK_SHARED(Tap, table, [kTapTable]);
  const Place<kCount> place(args.C, args.groups);
  if (args.partial != nullptr) {
    fill_tap_table(args, table);
    const int taps = args.window.R * args.window.S;
    float* partial = args.partial + static_cast<int64_t>(place.tile) * (taps + 1) * args.C + place.k;
    const bool writes = place.inside && threadIdx.y == 0;
#pragma unroll 1
    for (int tap0 = 0; tap0 < taps; tap0 += kTapGroup) {
      float sums[kTapGroup][kCount] = {};
      float bias[kCount] = {};
      if (place.inside) add_weight_gradients(args, place, table + tap0, sums, bias);
#pragma unroll
      for (int j = 0; j < kTapGroup; ++j) {
        if (tap0 + j < taps) add_and_store(sums[j], writes, partial + static_cast<int64_t>(tap0 + j) * args.C);
      }
      if (tap0 == 0) add_and_store(bias, writes, partial + static_cast<int64_t>(taps) * args.C);
    }
  }
  if (args.grad_x.data != nullptr && place.inside) write_grad_x(args, place);
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
#pragma unroll 4
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
