// The gradient of y = act(u), u = gamma * (z - mean) * rstd + beta + residual. In training the sums over all pixels
// come first, in two stages; in evaluation one pass writes the gradients and the first stage of the sums.
#pragma once
#include "batch_norm.h"
#include "cuda/activation_gradient.cuh"
#include "cuda/block_rows.cuh"
#include "cuda/channel_lanes.cuh"
#include "cuda/column_sums.cuh"
#include "cuda/pixels.cuh"

namespace ik::cuda {

template <typename T>
struct NormBackwardArgs {
  PixelGrid grid;
  Pixels<const T> grad_y, z, residual;
  Pixels<T> grad_z, grad_residual;
  const float* mean;  // [K] as all vectors; null = no BN
  const float* rstd;
  const float* gamma;
  const float* beta;
  const float* corrections;  // [2][K]: what the batch's mean and variance take from grad_z; null = nothing
  float* partial;            // [tiles][2][K]: sums of grad_u and of grad_u * (z - mean)
  int pixels, K;
  int tile_pixels;
  int groups;
  Activation activation;
};

template <int kCount>
struct NormVectors {
  float mean[kCount];
  float scale[kCount];
  float shift[kCount];

  template <typename T>
  IK_DEVICE NormVectors(const NormBackwardArgs<T>& args, int k) {
    const bool norm = args.mean != nullptr;
    float rstd[kCount];
    load_vector(norm ? args.mean : nullptr, k, 0.0f, mean);
    load_vector(norm ? args.gamma : nullptr, k, 1.0f, scale);
    load_vector(norm ? args.rstd : nullptr, k, 1.0f, rstd);
    load_vector(norm ? args.beta : nullptr, k, 0.0f, shift);
#pragma unroll
    for (int i = 0; i < kCount; ++i) scale[i] *= rstd[i];
  }
};

constexpr int kBackwardStep = 4;  // pixels: the tiles of a thread are multiples of it

// Pixels in flight at a time: as many as the registers hold.
template <int kCount>
constexpr int kBackwardPixels = kCount == 8 ? 2 : 4;

template <typename T, int kCount, bool kReduce, bool kApply>
__global__ void __launch_bounds__(kChannelThreads, kBlocksPerMultiprocessor)
    norm_backward_kernel(NormBackwardArgs<T> args) {
  const Place<kCount> place(args.K, args.groups);
  const int begin = place.tile * args.tile_pixels;
  const int end = args.pixels - begin > args.tile_pixels ? begin + args.tile_pixels : args.pixels;
  const int rows = blockDim.y;
  const bool has_residual = args.residual.data != nullptr;
  constexpr int kPixels = kBackwardPixels<kCount>;
  float sums[2 * kCount] = {};
  if (place.inside) {
    const NormVectors<kCount> norm(args, place.k);
    float constant[kCount];
    float slope[kCount];
    if (kApply) {
      load_vector(args.corrections, place.k, 0.0f, constant);
      load_vector(args.corrections == nullptr ? nullptr : args.corrections + args.K, place.k, 0.0f, slope);
    }
    for (int m = begin + threadIdx.y; m < end; m += kPixels * rows) {
      Packet<T, kCount> grad_y[kPixels];
      Packet<T, kCount> z[kPixels];
      Packet<T, kCount> residual[kPixels];
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        if (m + j * rows >= end) continue;
        const Pixel pixel = args.grid.at(m + j * rows);
        grad_y[j] = load_packet<T, kCount>(args.grad_y.at(pixel) + place.k);
        z[j] = load_packet<T, kCount>(args.z.at(pixel) + place.k);
        if (has_residual) residual[j] = load_packet<T, kCount>(args.residual.at(pixel) + place.k);
      }
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        if (m + j * rows >= end) continue;
        float centred[kCount];
        float u[kCount];
        float gradient[kCount];
        unpack(z[j], centred);
        unpack(grad_y[j], gradient);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          centred[i] -= norm.mean[i];
          u[i] = fmaf(centred[i], norm.scale[i], norm.shift[i]);
        }
        if (has_residual) {
          float added[kCount];
          unpack(residual[j], added);
#pragma unroll
          for (int i = 0; i < kCount; ++i) u[i] += added[i];
        }
        multiply_by_slope(args.activation, u, gradient);
        if (kReduce) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) {
            sums[i] += gradient[i];
            sums[kCount + i] = fmaf(gradient[i], centred[i], sums[kCount + i]);
          }
        }
        if (kApply) {
          const Pixel pixel = args.grid.at(m + j * rows);
          if (args.grad_residual.data != nullptr) store_floats(args.grad_residual.at(pixel) + place.k, gradient);
          if (args.grad_z.data != nullptr) {
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
              gradient[i] = gradient[i] * norm.scale[i] - fmaf(centred[i], slope[i], constant[i]);
            }
            store_floats(args.grad_z.at(pixel) + place.k, gradient);
          }
        }
      }
    }
  }
  if (!kReduce) return;
  float* partial = args.partial + place.tile * 2 * static_cast<int64_t>(args.K) + place.first;
  reduce_rows(sums, [&](int term, int lane, float sum) {
    const int channel = lane * kCount + term % kCount;
    if (place.first + channel < args.K) partial[term / kCount * args.K + channel] = sum;
  });
}

struct NormSumsArgs {
  const float* partial;  // [tiles][2][K]
  int64_t tiles, K;
  double pixels;
  const float* rstd;   // null = no BN
  const float* gamma;  // null = 1
  bool training;
  float* corrections;  // [2][K]; may be null, as all that follow
  float* grad_gamma;
  float* grad_beta;
  float* grad_z_sum;
};

__global__ void __launch_bounds__(kColumnThreads) norm_sums_kernel(NormSumsArgs args) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  double sums[2] = {};
  if (k < args.K) {
#pragma unroll 4
    for (int64_t tile = threadIdx.y; tile < args.tiles; tile += kColumnRows) {
      sums[0] += args.partial[tile * 2 * args.K + k];
      sums[1] += args.partial[(tile * 2 + 1) * args.K + k];
    }
  }
  add_rows(sums);
  if (k >= args.K || threadIdx.y != 0) return;
  const double sum = sums[0];
  const double product = sums[1];
  const double rstd = args.rstd == nullptr ? 1.0 : args.rstd[k];
  // The product in float32, as norm_backward_kernel has it.
  const float scale = args.rstd == nullptr ? 1.0f : (args.gamma == nullptr ? 1.0f : args.gamma[k]) * args.rstd[k];
  if (args.corrections != nullptr) {
    args.corrections[k] = static_cast<float>(scale * sum / args.pixels);
    args.corrections[args.K + k] = static_cast<float>(scale * rstd * rstd * product / args.pixels);
  }
  if (args.grad_gamma != nullptr) args.grad_gamma[k] = static_cast<float>(product * rstd);
  if (args.grad_beta != nullptr) args.grad_beta[k] = static_cast<float>(sum);
  if (args.grad_z_sum == nullptr) return;
  // Batch statistics take the mean of grad_z away: what is left is 0, or NaN where a value was not finite.
  const double left = args.training ? (sum - sum) + (product - product) : sum;
  args.grad_z_sum[k] = static_cast<float>(scale * left);
}

}  // namespace ik::cuda
