#include <cstring>
#include <vector>

#include "common/counters.h"
#include "common/parallel.h"
#include "conv2d_bn_act.h"
#include "cpu/scratch.h"
#include "cpu/training/products.h"
#include "cpu/training/ranges.h"

namespace ik::cpu {
namespace {

using namespace training;

constexpr int64_t kTileBytes = 640 << 10;  // gathered rows of a tile: they stay in L2 while all panels pass
constexpr int64_t kTiles = 8;

// Taps that reach input pixels of residue `phase` (modulo the stride) along one axis, and where they read grad_z
// relative to the pixel's index within its residue.
struct AxisTaps {
  std::vector<int64_t> tap;
  std::vector<int64_t> offset;
};

AxisTaps axis_taps(int64_t phase, int64_t window, int64_t stride, int64_t pad, int64_t dilation) {
  AxisTaps found;
  for (int64_t t = 0; t < window; ++t) {
    const int64_t position = phase + pad - t * dilation;
    if (remainder(position, stride) != 0) continue;
    found.tap.push_back(t);
    found.offset.push_back(divide_down(position, stride));
  }
  return found;
}

void one_residue(const Kernels& table, const Conv2dBackward& args, const WeightView& weight, const NhwcOutput& grad_x,
                 int64_t phase_h, int64_t phase_w) {
  const ConvShape& s = args.shape;
  const AxisTaps vertical = axis_taps(phase_h, s.R, s.stride_h, s.pad_h, s.dilation_h);
  const AxisTaps horizontal = axis_taps(phase_w, s.S, s.stride_w, s.pad_w, s.dilation_w);
  std::vector<int64_t> tap_r, tap_s, tap_y, tap_x;
  for (size_t i = 0; i < vertical.tap.size(); ++i)
    for (size_t j = 0; j < horizontal.tap.size(); ++j) {
      tap_r.push_back(vertical.tap[i]);
      tap_s.push_back(horizontal.tap[j]);
      tap_y.push_back(vertical.offset[i]);
      tap_x.push_back(horizontal.offset[j]);
    }
  const int64_t taps = static_cast<int64_t>(tap_r.size()), size = table.accumulator_bytes;

  TapProduct product;
  product.in = args.grad_z;
  product.in_h = s.P(), product.in_w = s.Q(), product.in_c = s.K;
  product.taps = taps;
  product.tap_y = tap_y.data(), product.tap_x = tap_x.data();
  product.packed = pack_taps(table, weight, s.K, s.C, taps, tap_r.data(), tap_s.data());
  product.out = grad_x;
  const int64_t storage = args.dtype == DType::kFloat64 ? 8 : args.dtype == DType::kFloat32 ? 4 : 2;
  product.out.data =
      static_cast<char*>(grad_x.data) + (phase_h * grad_x.stride_h + phase_w * grad_x.stride_w) * storage;
  product.out.stride_h *= s.stride_h;
  product.out.stride_w *= s.stride_w;
  product.out_h = divide_up(s.H - phase_h, s.stride_h), product.out_w = divide_up(s.W - phase_w, s.stride_w);
  product.out_c = s.C;

  const int64_t pixels = s.N * product.out_h * product.out_w;
  const int64_t row_bytes = std::max<int64_t>(1, taps) * divide_up(s.K, table.lanes) * table.lanes * size;
  const int64_t most = std::min(kTileBytes / row_bytes, divide_up(pixels, kTiles));
  const int64_t tile = std::max<int64_t>(1, most / table.rows) * table.rows;
  parallel_for(0, divide_up(pixels, tile), 1, [&](int64_t begin, int64_t end) {
    void* rows = scratch(Scratch::kRows, tile * row_bytes);
    for (int64_t i = begin; i < end; ++i) table.tap_product(product, i * tile, std::min(pixels, (i + 1) * tile), rows);
  });
}

}  // namespace

void conv2d_backward_data(const Conv2dBackward& args, const WeightView& weight, const NhwcOutput& grad_x) {
  const ConvShape& s = args.shape;
  if (s.N == 0) return;
  const Kernels& table = kernels(args.dtype);
  count_kernel(table.conv_name);
  for (int64_t h = 0; h < std::min(s.stride_h, s.H); ++h)
    for (int64_t w = 0; w < std::min(s.stride_w, s.W); ++w) one_residue(table, args, weight, grad_x, h, w);
}

void conv2d_backward_weight(const Conv2dBackward& args, const NhwcInput& x, void* grad_weight) {
  const Kernels& table = kernels(args.dtype);
  const ConvShape& s = args.shape;
  if (s.N == 0) {
    const size_t storage = args.dtype == DType::kFloat64 ? 8 : args.dtype == DType::kFloat32 ? 4 : 2;
    std::memset(grad_weight, 0, s.K * s.C * s.R * s.S * storage);
    return;
  }
  count_kernel(table.conv_name);
  WeightGradient gradient{};
  gradient.shape = s;
  gradient.x = x;
  gradient.grad_z = args.grad_z;
  training::weight_gradient(table, gradient, grad_weight);
}

}  // namespace ik::cpu
