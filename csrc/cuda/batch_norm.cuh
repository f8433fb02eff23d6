// Batch norm in training: statistics, normalise + activation, and the gradient of both. Every kernel reads its inputs
// once, 16 bytes at a time where the channels allow it, and is bound by memory.
#pragma once
#include "batch_norm.h"
#include "cuda/activation_gradient.cuh"
#include "cuda/channel_lanes.cuh"
#include "cuda/column_sums.cuh"
#include "cuda/pixels.cuh"

namespace ik::cuda {

// ---- parameters

IK_DEVICE double parameter_at(const ParameterView& view, int64_t k, double otherwise) {
  if (view.data == nullptr) return otherwise;
  const int64_t i = k * view.stride;
  if (view.dtype == DType::kBFloat16) return to_float(static_cast<const bf16*>(view.data)[i]);
  if (view.dtype == DType::kFloat16) return to_float(static_cast<const fp16*>(view.data)[i]);
  return static_cast<const float*>(view.data)[i];
}

struct FoldArgs {
  int64_t K;
  BatchNormParameters given;
  double eps;
  BatchNormVectors wanted;
};

IK_DEVICE void store_if(float* vector, int64_t k, double value) {
  if (vector != nullptr) vector[k] = static_cast<float>(value);
}

constexpr int kFoldThreads = 128;

__global__ void __launch_bounds__(kFoldThreads) fold_batch_norm_kernel(FoldArgs args) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kFoldThreads + threadIdx.x;
  if (k >= args.K) return;
  const BatchNormParameters& given = args.given;
  const bool norm = given.var.data != nullptr;
  const double gamma = parameter_at(given.gamma, k, 1.0);
  const double beta = parameter_at(given.beta, k, 0.0);
  const double mean = parameter_at(given.mean, k, 0.0);
  const double rstd = norm ? 1.0 / sqrt(parameter_at(given.var, k, 1.0) + args.eps) : 1.0;
  const double scale = gamma * rstd;
  store_if(args.wanted.scale, k, scale);
  store_if(args.wanted.shift, k, (parameter_at(given.bias, k, 0.0) - mean) * scale + beta);
  store_if(args.wanted.rstd, k, rstd);
  store_if(args.wanted.mean, k, mean);
  store_if(args.wanted.gamma, k, gamma);
  store_if(args.wanted.beta, k, beta);
}

// ---- statistics

// Count, mean and sum of squared deviations of some pixels, for kCount channels.
template <int kCount>
struct Moments {
  float count = 0.0f;
  float mean[kCount] = {};
  float squares[kCount] = {};

  // Chan's formula.
  IK_DEVICE void merge(float other_count, const float (&other_mean)[kCount], const float (&other_squares)[kCount]) {
    if (other_count == 0.0f) return;
    const float total = count + other_count;
    const float share = other_count / total;
    const float weight = count * share;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float delta = other_mean[i] - mean[i];
      mean[i] = fmaf(delta, share, mean[i]);
      squares[i] += fmaf(delta * weight, delta, other_squares[i]);
    }
    count = total;
  }
};

constexpr int kStatisticsPixels = 8;  // in registers at a time: their mean first, then their deviations from it

// Pixels behind the valid ones are 0.
template <typename T, int kCount>
IK_DEVICE void merge_pixels(const Packet<T, kCount> (&pixels)[kStatisticsPixels], int valid, Moments<kCount>& moments) {
  float mean[kCount] = {};
  float squares[kCount] = {};
#pragma unroll
  for (int j = 0; j < kStatisticsPixels; ++j) {
    float values[kCount];
    unpack(pixels[j], values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) mean[i] += values[i];
  }
  const float share = 1.0f / static_cast<float>(valid);
#pragma unroll
  for (int i = 0; i < kCount; ++i) mean[i] *= share;
#pragma unroll
  for (int j = 0; j < kStatisticsPixels; ++j) {
    float values[kCount];
    unpack(pixels[j], values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float deviation = j < valid ? values[i] - mean[i] : 0.0f;
      squares[i] = fmaf(deviation, deviation, squares[i]);
    }
  }
  moments.merge(static_cast<float>(valid), mean, squares);
}

// Merges the moments of the block's rows pairwise; row 0 has the result.
template <int kCount>
IK_DEVICE void merge_rows(Moments<kCount>& moments) {
  IK_SHARED(float, counts, [kChannelThreads]);
  IK_SHARED(float, means, [kChannelThreads * kCount]);
  IK_SHARED(float, squares, [kChannelThreads * kCount]);
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  for (int rows = blockDim.y / 2; rows >= 1; rows /= 2) {
    const int row = threadIdx.y;
    if (row >= rows && row < 2 * rows) {
      counts[thread] = moments.count;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        means[i * kChannelThreads + thread] = moments.mean[i];
        squares[i * kChannelThreads + thread] = moments.squares[i];
      }
    }
    __syncthreads();
    if (row < rows) {
      const int other = thread + rows * static_cast<int>(blockDim.x);
      float other_mean[kCount];
      float other_squares[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        other_mean[i] = means[i * kChannelThreads + other];
        other_squares[i] = squares[i * kChannelThreads + other];
      }
      moments.merge(counts[other], other_mean, other_squares);
    }
    __syncthreads();
  }
}

template <typename T>
struct StatisticsArgs {
  PixelGrid grid;
  Pixels<const T> z;
  int pixels, K;
  int tile_pixels;  // a multiple of the block's rows times kStatisticsPixels
  int groups;
  float* partial;  // [tiles][2][K]
};

template <typename T, int kCount>
__global__ void __launch_bounds__(kChannelThreads, kBlocksPerMultiprocessor) statistics_kernel(StatisticsArgs<T> args) {
  const Place<kCount> place(args.K, args.groups);
  const int begin = place.tile * args.tile_pixels;
  const int end = args.pixels - begin > args.tile_pixels ? begin + args.tile_pixels : args.pixels;
  const int rows = blockDim.y;
  Moments<kCount> moments;
  if (place.inside) {
    for (int m = begin + threadIdx.y; m < end; m += kStatisticsPixels * rows) {
      Packet<T, kCount> pixels[kStatisticsPixels] = {};
      int valid = 0;
#pragma unroll
      for (int j = 0; j < kStatisticsPixels; ++j) {
        if (m + j * rows >= end) continue;
        pixels[j] = load_packet<T, kCount>(args.z.at(args.grid.at(m + j * rows)) + place.k);
        ++valid;
      }
      merge_pixels(pixels, valid, moments);
    }
  }
  merge_rows(moments);
  if (!place.inside || threadIdx.y != 0) return;
  float* mean = args.partial + place.tile * 2 * static_cast<int64_t>(args.K) + place.k;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    mean[i] = moments.mean[i];
    mean[args.K + i] = moments.squares[i];
  }
}

// ---- combination of the tiles' statistics

// Lengths of a box that may be cut off at the far end of each axis.
struct TileCounts {
  int64_t N, P, Q;
  int64_t tile_n, tile_p, tile_q;
  int64_t tiles_p, tiles_q;
  const float* given;  // [tiles]: counts that do not follow from boxes; null = they do

  IK_DEVICE static int64_t length(int64_t tile, int64_t size, int64_t whole) {
    const int64_t left = whole - tile * size;
    return left < size ? left : size;
  }
  IK_DEVICE double pixels(int64_t tile) const {
    if (given != nullptr) return given[tile];
    const int64_t row = tile / tiles_q;
    const int64_t n = row / tiles_p;
    return static_cast<double>(length(n, tile_n, N) * length(row - n * tiles_p, tile_p, P) *
                               length(tile - row * tiles_q, tile_q, Q));
  }
};

struct CombineArgs {
  const float* partial;  // [tiles][2][K]
  TileCounts counts;
  int64_t tiles, K;
  int64_t section;  // tiles of a block
  double pixels;
  double* sums;  // [sections][2][K], where there is more than one
  float* mean;
  float* var;
};

// first = sum of (z - shift), second = sum of (z - shift)^2 over all pixels. In float64, and with a tile's mean as the
// shift, their difference loses nothing that float32 holds.
IK_DEVICE void finish_statistics(const CombineArgs& args, int64_t k, double first, double second) {
  const double distance = first / args.pixels;
  const double var = second / args.pixels - distance * distance;
  args.mean[k] = static_cast<float>(args.partial[k] + distance);
  args.var[k] = static_cast<float>(var < 0.0 ? 0.0 : var);
}

__global__ void __launch_bounds__(kColumnThreads, 2) combine_statistics_kernel(CombineArgs args) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * args.section;
  const int64_t end = begin + args.section < args.tiles ? begin + args.section : args.tiles;
  const double shift = k < args.K ? args.partial[k] : 0.0;
  double sums[2] = {};
  if (k < args.K) {
#pragma unroll 4
    for (int64_t tile = begin + threadIdx.y; tile < end; tile += kColumnRows) {
      const float* partial = args.partial + tile * 2 * args.K + k;
      const double count = args.counts.pixels(tile);
      const double distance = partial[0] - shift;
      sums[0] += count * distance;
      sums[1] += partial[args.K] + count * distance * distance;
    }
  }
  add_rows(sums);
  if (k >= args.K || threadIdx.y != 0) return;
  if (gridDim.y == 1) return finish_statistics(args, k, sums[0], sums[1]);
  double* out = args.sums + static_cast<int64_t>(blockIdx.y) * 2 * args.K + k;
  out[0] = sums[0];
  out[args.K] = sums[1];
}

__global__ void __launch_bounds__(kColumnThreads) combine_sections_kernel(CombineArgs args, int64_t sections) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  double sums[2] = {};
  if (k < args.K) {
    for (int64_t section = threadIdx.y; section < sections; section += kColumnRows) {
      sums[0] += args.sums[section * 2 * args.K + k];
      sums[1] += args.sums[(section * 2 + 1) * args.K + k];
    }
  }
  add_rows(sums);
  if (k < args.K && threadIdx.y == 0) finish_statistics(args, k, sums[0], sums[1]);
}

// ---- y = act(z * scale + shift + residual)

constexpr int kApplyPixels = 4;  // in flight at a time
constexpr int kApplyRounds = 4;  // of them, for one load of the vectors

template <typename T>
struct ScaleShiftArgs {
  PixelGrid grid;
  Pixels<const T> z, residual;
  Pixels<T> y;
  const float* scale;
  const float* shift;
  int pixels, K;
  int groups;
  Activation activation;
};

template <typename T, int kCount>
__global__ void __launch_bounds__(kChannelThreads, kBlocksPerMultiprocessor)
    scale_shift_act_kernel(ScaleShiftArgs<T> args) {
  const Place<kCount> place(args.K, args.groups);
  if (!place.inside) return;
  float scale[kCount];
  float shift[kCount];
  load_vector(args.scale, place.k, 1.0f, scale);
  load_vector(args.shift, place.k, 0.0f, shift);
  const int rows = blockDim.y;
  const int begin = place.tile * rows * kApplyPixels * kApplyRounds + threadIdx.y;
  const bool has_residual = args.residual.data != nullptr;
  for (int round = 0; round < kApplyRounds; ++round) {
    const int m = begin + round * kApplyPixels * rows;
    Packet<T, kCount> z[kApplyPixels];
    Packet<T, kCount> residual[kApplyPixels];
#pragma unroll
    for (int j = 0; j < kApplyPixels; ++j) {
      if (m + j * rows >= args.pixels) continue;
      const Pixel pixel = args.grid.at(m + j * rows);
      z[j] = load_packet<T, kCount>(args.z.at(pixel) + place.k);
      if (has_residual) residual[j] = load_packet<T, kCount>(args.residual.at(pixel) + place.k);
    }
#pragma unroll
    for (int j = 0; j < kApplyPixels; ++j) {
      if (m + j * rows >= args.pixels) continue;
      float u[kCount];
      unpack(z[j], u);
#pragma unroll
      for (int i = 0; i < kCount; ++i) u[i] = fmaf(u[i], scale[i], shift[i]);
      if (has_residual) {
        float added[kCount];
        unpack(residual[j], added);
#pragma unroll
        for (int i = 0; i < kCount; ++i) u[i] += added[i];
      }
      activate(args.activation, u);
      store_floats(args.y.at(args.grid.at(m + j * rows)) + place.k, u);
    }
  }
}

}  // namespace ik::cuda
