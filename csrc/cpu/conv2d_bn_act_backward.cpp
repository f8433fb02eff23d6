#include <cstring>
#include <numeric>

#include "common/counters.h"
#include "common/parallel.h"
#include "conv2d_bn_act.h"
#include "cpu/run_conv.h"
#include "cpu/scratch.h"
#include "cpu/tiling.h"
#include "cpu/training/products.h"
#include "cpu/training/ranges.h"

namespace ik::cpu {
namespace {

using namespace training;

size_t storage_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// Along one axis, the input pixels of residue `phase` modulo the stride are a convolution of grad_z with stride 1: of
// `taps` taps, the last of which is `last`, every `step`-th of the window, read backwards.
struct AxisTaps {
  int64_t taps = 0;
  int64_t last = 0;
  int64_t step = 1;
  int64_t pad = 0;
  int64_t dilation = 1;
};

AxisTaps axis_taps(int64_t phase, int64_t window, int64_t stride, int64_t pad, int64_t dilation) {
  AxisTaps found;
  found.step = stride / std::gcd(stride, dilation);
  found.dilation = dilation * found.step / stride;
  for (int64_t t = 0; t < window; ++t) {
    const int64_t position = phase + pad - t * dilation;
    if (remainder(position, stride) != 0) continue;
    ++found.taps;
    found.last = t;
    found.pad = -divide_down(position, stride);
  }
  return found;
}

void fill_zeros(const Geometry& g, const NhwcOutput& out, size_t storage) {
  parallel_for(0, g.N * g.P, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t q = 0; q < g.Q; ++q)
        std::memset(static_cast<char*>(out.data) +
                        (row / g.P * out.stride_n + row % g.P * out.stride_h + q * out.stride_w) * storage,
                    0, g.K * storage);
  });
}

// Whether it went by Winograd's algorithm.
bool one_residue(const KernelTable& table, const Conv2dBackward& args, const WeightView& weight,
                 const NhwcOutput& grad_x, int64_t phase_h, int64_t phase_w) {
  const ConvShape& s = args.shape;
  const AxisTaps vertical = axis_taps(phase_h, s.R, s.stride_h, s.pad_h, s.dilation_h);
  const AxisTaps horizontal = axis_taps(phase_w, s.S, s.stride_w, s.pad_w, s.dilation_w);
  const size_t storage = storage_bytes(args.dtype);

  Geometry g;
  g.N = s.N, g.C = s.K, g.H = s.P(), g.W = s.Q();
  g.K = s.C, g.R = vertical.taps, g.S = horizontal.taps;
  g.stride_h = g.stride_w = 1;
  g.pad_h = vertical.pad, g.pad_w = horizontal.pad;
  g.dilation_h = vertical.dilation, g.dilation_w = horizontal.dilation;
  g.P = divide_up(s.H - phase_h, s.stride_h), g.Q = divide_up(s.W - phase_w, s.stride_w);

  NhwcOutput out = grad_x;
  out.data = static_cast<char*>(grad_x.data) + (phase_h * grad_x.stride_h + phase_w * grad_x.stride_w) * storage;
  out.stride_h *= s.stride_h;
  out.stride_w *= s.stride_w;
  if (g.R == 0 || g.S == 0) {
    fill_zeros(g, out, storage);
    return false;
  }

  WeightView taps;
  taps.data = static_cast<const char*>(weight.data) +
              (vertical.last * weight.stride_r + horizontal.last * weight.stride_s) * storage;
  taps.stride_k = weight.stride_c, taps.stride_c = weight.stride_k;
  taps.stride_r = -vertical.step * weight.stride_r, taps.stride_s = -horizontal.step * weight.stride_s;
  const ConvTask task{g, args.grad_z, nullptr, {nullptr, nullptr, {}, Activation::kNone, out}};
  const ConvKernels& kernels = unpacked_conv_kernels(table, g, args.batch_statistics ? g.N : 1);
  run_unpacked_conv(table, kernels, task, taps, num_threads());
  return kernels.tile == table.winograd.tile;
}

}  // namespace

void conv2d_backward_data(const Conv2dBackward& args, const WeightView& weight, const NhwcOutput& grad_x) {
  const ConvShape& s = args.shape;
  if (s.N == 0) return;
  const KernelTable& table = kernel_table(args.dtype);
  bool by_winograd = false;
  for (int64_t h = 0; h < std::min(s.stride_h, s.H); ++h)
    for (int64_t w = 0; w < std::min(s.stride_w, s.W); ++w)
      by_winograd |= one_residue(table, args, weight, grad_x, h, w);
  const Kernels& names = kernels(args.dtype);
  count_kernel(by_winograd ? names.winograd_data_name : names.conv_name);
}

void conv2d_backward_weight(const Conv2dBackward& args, const NhwcInput& x, const WeightOutput& grad_weight,
                            bool wide) {
  const Kernels& table = kernels(args.dtype);
  const ConvShape& s = args.shape;
  WeightGradient gradient{};
  gradient.shape = s;
  gradient.x = x;
  gradient.grad_z = args.grad_z;
  training::weight_gradient(table, gradient, grad_weight, wide);
}

}  // namespace ik::cpu
