#include "batch_norm.h"

#include <cmath>
#include <type_traits>

#include "common/counters.h"
#include "common/parallel.h"
#include "cpu/scratch.h"
#include "cpu/training/kernels.h"
#include "cpu/training/ranges.h"

namespace ik::cpu {
namespace {

using namespace training;

// Pixels of a partial sum: fixed, so that sums do not depend on the thread count; few enough to stay in cache for a
// second pass.
constexpr int64_t kChunk = 128;
constexpr int64_t kGrain = 2048 * 16;  // pixels times channels worth a thread
constexpr int64_t kSlice = 64;         // channels, few chunks are divided among the threads by them as well

int64_t pixel_grain(int64_t K) { return std::max<int64_t>(1, kGrain / K); }

// Calls f(chunk, k0, k1) for every chunk of the pixels and slice of the channels.
template <typename F>
void for_each_slice(int64_t chunks, int64_t K, const F& f) {
  const int64_t slices = divide_up(K, kSlice);
  parallel_for(0, chunks * slices, std::max<int64_t>(1, kGrain / (kChunk * kSlice)), [&](int64_t begin, int64_t end) {
    // Neighbouring slices of a chunk in one call: they share cache lines of the pixels.
    for (int64_t i = begin; i < end;) {
      const int64_t chunk = i / slices, last = std::min(end, (chunk + 1) * slices);
      f(chunk, i % slices * kSlice, std::min(K, (last - chunk * slices) * kSlice));
      i = last;
    }
  });
}

// The channels from k on.
template <typename Pointer>
NhwcView<Pointer> from_channel(NhwcView<Pointer> view, int64_t k, DType dtype) {
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
  const int64_t storage = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
  if (view.data) view.data = static_cast<Byte*>(view.data) + k * storage;
  return view;
}

// Treats [N, P, Q] as one row where every view allows it.
template <typename Args, typename... Views>
void join_rows(Args& args, const Views&... views) {
  if (!(is_one_row(views, args.P, args.Q) && ...)) return;
  args.Q *= args.N * args.P;
  args.N = args.P = 1;
}

template <typename A>
A value_or(const void* values, int64_t i, A otherwise) {
  return values ? static_cast<const A*>(values)[i] : otherwise;
}

// Chan's formula over the chunks, in double, chunk after chunk.
template <typename A>
void combine_statistics(const A* partial, int64_t K, int64_t pixels, int64_t k0, int64_t k1, double* sum,
                        double* square, A* mean, A* var) {
  const int64_t chunks = divide_up(pixels, kChunk);
  std::fill(sum + k0, sum + k1, 0.0);
  std::fill(square + k0, square + k1, 0.0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const double count = static_cast<double>(std::min(kChunk, pixels - chunk * kChunk));
    const A* shift = partial + chunk * 3 * K;
    for (int64_t k = k0; k < k1; ++k) sum[k] += count * shift[k] + shift[K + k];
  }
  for (int64_t k = k0; k < k1; ++k) sum[k] /= static_cast<double>(pixels);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const double count = static_cast<double>(std::min(kChunk, pixels - chunk * kChunk));
    const A* shift = partial + chunk * 3 * K;
    // Sum of (z - mean)^2 = sum of (z - shift)^2 + 2 d sum of (z - shift) + count d^2 with d = shift - mean.
    for (int64_t k = k0; k < k1; ++k) {
      const double d = shift[k] - sum[k];
      square[k] += shift[2 * K + k] + d * (2 * shift[K + k] + count * d);
    }
  }
  for (int64_t k = k0; k < k1; ++k) {
    mean[k] = static_cast<A>(sum[k]);
    // Rounding must not make it negative; NaN stays NaN.
    var[k] = static_cast<A>(square[k] < 0 ? 0.0 : square[k] / static_cast<double>(pixels));
  }
}

template <typename A>
void statistics_of(ScaleShiftAct args, const Kernels& table, A* mean, A* var) {
  const int64_t pixels = args.N * args.P * args.Q, K = args.K, chunks = divide_up(pixels, kChunk);
  A* partial = static_cast<A*>(scratch(Scratch::kPartial, chunks * 3 * K * sizeof(A)));
  double* sums = static_cast<double*>(scratch(Scratch::kVectors, 2 * K * sizeof(double)));
  for_each_slice(chunks, K, [&](int64_t chunk, int64_t k0, int64_t k1) {
    ScaleShiftAct slice = args;
    slice.K = k1 - k0;
    slice.z = from_channel(args.z, k0, args.dtype);
    A* out = partial + chunk * 3 * K + k0;
    table.statistics(slice, chunk * kChunk, std::min(pixels, (chunk + 1) * kChunk), out, out + K, out + 2 * K);
  });
  parallel_for(0, K, std::max<int64_t>(16, 32768 / chunks), [&](int64_t begin, int64_t end) {
    combine_statistics(partial, K, pixels, begin, end, sums, sums + K, mean, var);
  });
}

template <typename A>
void backward_of(BnActBackward args, const Kernels& table) {
  const int64_t pixels = args.N * args.P * args.Q, K = args.K, chunks = divide_up(pixels, kChunk);
  A* vectors = static_cast<A*>(scratch(Scratch::kVectors, 5 * K * sizeof(A)));
  A *mean = vectors, *scale = mean + K, *shift = scale + K, *k1s = shift + K, *k2s = k1s + K;
  const bool norm = args.mean != nullptr, training = norm && args.training;
  for (int64_t k = 0; k < K; ++k) {
    mean[k] = value_or<A>(args.mean, k, 0);
    scale[k] = norm ? value_or<A>(args.gamma, k, 1) * value_or<A>(args.rstd, k, 1) : A(1);
    shift[k] = norm ? value_or<A>(args.beta, k, 0) : A(0);
    k1s[k] = k2s[k] = 0;
  }
  const NormCoefficients coefficients{mean, scale, shift, k1s, k2s};

  if (training || args.grad_gamma || args.grad_beta || args.grad_z_sum) {
    A* partial = static_cast<A*>(scratch(Scratch::kPartial, chunks * 2 * K * sizeof(A)));
    for_each_slice(chunks, K, [&](int64_t chunk, int64_t k0, int64_t k1) {
      BnActBackward slice = args;
      slice.K = k1 - k0;
      slice.grad_y = from_channel(args.grad_y, k0, args.dtype);
      slice.z = from_channel(args.z, k0, args.dtype);
      slice.residual = from_channel(args.residual, k0, args.dtype);
      const NormCoefficients own{mean + k0, scale + k0, shift + k0, k1s + k0, k2s + k0};
      A* out = partial + chunk * 2 * K + k0;
      table.norm_reduce(slice, own, chunk * kChunk, std::min(pixels, (chunk + 1) * kChunk), out, out + K);
    });
    double* sums = static_cast<double*>(scratch(Scratch::kSums, 2 * K * sizeof(double)));
    parallel_for(0, K, std::max<int64_t>(16, 32768 / std::max<int64_t>(1, chunks)), [&](int64_t begin, int64_t end) {
      double *sum = sums, *product = sums + K;
      std::fill(sum + begin, sum + end, 0.0);
      std::fill(product + begin, product + end, 0.0);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const A* p = partial + chunk * 2 * K;
        for (int64_t k = begin; k < end; ++k) sum[k] += p[k];
        for (int64_t k = begin; k < end; ++k) product[k] += p[K + k];
      }
      const double count = static_cast<double>(std::max<int64_t>(1, pixels));
      for (int64_t k = begin; k < end; ++k) {
        const double rstd = norm ? value_or<A>(args.rstd, k, 1) : 1.0;
        if (training) {
          k1s[k] = static_cast<A>(scale[k] * sum[k] / count);
          k2s[k] = static_cast<A>(scale[k] * rstd * rstd * product[k] / count);
        }
        if (args.grad_gamma) static_cast<A*>(args.grad_gamma)[k] = static_cast<A>(product[k] * rstd);
        if (args.grad_beta) static_cast<A*>(args.grad_beta)[k] = static_cast<A>(sum[k]);
        // Batch statistics take the mean of grad_z away: what is left is 0, or NaN where a value was not finite.
        if (args.grad_z_sum)
          static_cast<A*>(args.grad_z_sum)[k] =
              static_cast<A>(scale[k] * (training ? (sum[k] - sum[k]) + (product[k] - product[k]) : sum[k]));
      }
    });
  }
  if (!args.grad_z.data && !args.grad_residual.data) return;
  parallel_for(0, pixels, pixel_grain(K),
               [&](int64_t begin, int64_t end) { table.norm_apply(args, coefficients, begin, end); });
}

}  // namespace

void batch_statistics(int64_t N, int64_t P, int64_t Q, int64_t K, DType dtype, const NhwcInput& z, void* mean,
                      void* var) {
  ScaleShiftAct args{};
  args.N = N, args.P = P, args.Q = Q, args.K = K;
  args.dtype = dtype;
  args.z = z;
  join_rows(args, args.z);
  if (N * P * Q == 0 || K == 0) return;
  const Kernels& table = kernels(dtype);
  count_kernel(table.norm_forward_name);
  if (dtype == DType::kFloat64)
    statistics_of(args, table, static_cast<double*>(mean), static_cast<double*>(var));
  else
    statistics_of(args, table, static_cast<float*>(mean), static_cast<float*>(var));
}

void scale_shift_act(const ScaleShiftAct& given) {
  ScaleShiftAct args = given;
  join_rows(args, args.z, args.residual, args.y);
  const int64_t pixels = args.N * args.P * args.Q;
  if (pixels == 0 || args.K == 0) return;
  const Kernels& table = kernels(args.dtype);
  count_kernel(table.norm_forward_name);
  parallel_for(0, pixels, pixel_grain(args.K),
               [&](int64_t begin, int64_t end) { table.scale_shift_act(args, begin, end); });
}

void bn_act_backward(const BnActBackward& given) {
  BnActBackward args = given;
  join_rows(args, args.grad_y, args.z, args.residual, args.grad_z, args.grad_residual);
  if (args.K == 0) return;
  const Kernels& table = kernels(args.dtype);
  count_kernel(table.norm_backward_name);
  if (args.dtype == DType::kFloat64)
    backward_of<double>(args, table);
  else
    backward_of<float>(args, table);
}

}  // namespace ik::cpu
