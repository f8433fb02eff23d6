#include <cstring>
#include <utility>

#include "common/counters.h"
#include "common/parallel.h"
#include "cpu/kernel_table.h"
#include "cpu/run_conv.h"
#include "cpu/scratch.h"
#include "cpu/tiling.h"
#include "cpu/training/products.h"
#include "cpu/training/ranges.h"
#include "separable_conv2d.h"

namespace ik::cpu {
namespace {

using namespace training;

constexpr int64_t kTileBytes = 1280 << 10;  // the intermediate's gradient in a tile, halo included: stays in L2
constexpr int64_t kTiles = 4;               // at least so many, and an even number while there are few
constexpr int64_t kManyTiles = 16;
constexpr int64_t kImageBytes = 2 << 20;  // the same of whole images, which need no halo: stays in L2 and L3
constexpr double kIdle = 0.1;             // of the threads' time, where each takes whole images

struct TilePlan {
  bool by_panels;    // images are not cut: their panels of channels are the tasks
  int64_t images;    // that go through both passes together, if by panels
  int64_t segments;  // of an image's height
  int64_t tiles;
  int64_t most_rows;   // output rows of a tile, at most
  int64_t most_strip;  // rows of the intermediate's strip, at most
};

SeparableTile make_tile(const ConvShape& s, int64_t segments, int64_t index) {
  SeparableTile tile;
  const int64_t P = s.P(), segment = index % segments;
  tile.n = index / segments;
  tile.h0 = s.H * segment / segments, tile.h1 = s.H * (segment + 1) / segments;
  tile.own0 = P * segment / segments, tile.own1 = P * (segment + 1) / segments;
  const int64_t need0 = divide_down(tile.h0 + s.pad_h - (s.R - 1) * s.dilation_h + s.stride_h - 1, s.stride_h);
  const int64_t need1 = divide_down(tile.h1 - 1 + s.pad_h, s.stride_h) + 1;
  tile.p0 = std::clamp<int64_t>(need0, 0, P), tile.p1 = std::clamp<int64_t>(need1, tile.p0, P);
  if (tile.own0 < tile.own1) {
    tile.p0 = std::min(tile.p0, tile.own0), tile.p1 = std::max(tile.p1, tile.own1);
  }
  return tile;
}

int64_t strip_rows(const ConvShape& s, const SeparableTile& tile) {
  const int64_t y0 = std::min(tile.p0, divide_down(tile.h0 + s.pad_h - (s.R - 1) * s.dilation_h, s.stride_h));
  return std::max(tile.p1, divide_down(tile.h1 - 1 + s.pad_h, s.stride_h) + 1) - y0;
}

TilePlan make_plan(const ConvShape& s, int64_t storage) {
  const int64_t row_bytes = s.Q() * s.C * storage;
  const int64_t halo = divide_up((s.R - 1) * s.dilation_h, s.stride_h);
  const int64_t rows = std::max<int64_t>(kTileBytes / row_bytes - halo, 1);
  TilePlan plan;
  const bool whole = s.P() * row_bytes <= kImageBytes;
  // A thread that has an image for itself waits for nobody. That is a matter of speed alone: sums are those of an
  // image.
  const int64_t places = divide_up(s.N, num_threads()) * num_threads();
  plan.by_panels = whole && static_cast<double>(places - s.N) > kIdle * static_cast<double>(places);
  plan.images = std::clamp<int64_t>(kImageBytes / (s.P() * row_bytes), 1, s.N);
  plan.segments = 1;
  if (!whole) {
    plan.segments = std::clamp<int64_t>(divide_up(s.P(), rows), 1, s.H);
    plan.segments = std::max(plan.segments, std::min(divide_up(kTiles, s.N), divide_up(s.H, 8)));
    if (s.N * plan.segments < kManyTiles && s.N * plan.segments % 2 != 0 && plan.segments < s.H) ++plan.segments;
  }
  plan.tiles = s.N * plan.segments;
  plan.most_rows = plan.most_strip = 1;
  for (int64_t i = 0; i < plan.segments; ++i) {
    const SeparableTile tile = make_tile(s, plan.segments, i);
    plan.most_rows = std::max(plan.most_rows, tile.p1 - tile.p0);
    plan.most_strip = std::max(plan.most_strip, strip_rows(s, tile));
  }
  return plan;
}

// Bytes of a tile's buffers, each on a cache line's boundary.
struct BufferSizes {
  size_t strip, grad_mid, line, weights;
};

size_t whole_lines(int64_t bytes) { return static_cast<size_t>(divide_up(bytes, 64) * 64); }

BufferSizes buffer_sizes(const Kernels& table, const ConvShape& s, const TilePlan& plan) {
  const int64_t size = table.accumulator_bytes, panel = table.columns * size;
  const int64_t x0 = std::min<int64_t>(0, divide_down(s.pad_w - (s.S - 1) * s.dilation_w, s.stride_w));
  const int64_t x1 = std::max(s.Q(), divide_down(s.W - 1 + s.pad_w, s.stride_w) + 1);
  BufferSizes bytes;
  bytes.strip = whole_lines(((plan.most_rows - 1) * s.stride_h + (s.R - 1) * s.dilation_h + 1) *
                            ((s.Q() - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1) * panel);
  bytes.grad_mid = whole_lines(plan.most_strip * (x1 - x0) * panel);
  bytes.line = whole_lines(std::max(s.Q(), s.W) * panel);
  bytes.weights = whole_lines(s.R * s.S * panel);
  return bytes;
}

// Sums the tiles' depthwise gradients in tile order, in double.
template <typename A>
void reduce_depthwise(const Kernels& table, const SeparableBackward& args, const A* partial, int64_t tiles,
                      int64_t stride) {
  const ConvShape& s = args.shape;
  const int64_t taps = s.R * s.S, panels = divide_up(s.C, table.columns);
  double* sums = static_cast<double*>(scratch(Scratch::kVectors, (stride + s.C * taps) * sizeof(double)));
  double* ordered = sums + stride;
  parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    const int64_t panel = (taps + 1) * table.columns;
    double* out = sums + begin * panel;
    const int64_t count = (end - begin) * panel;
    std::fill(out, out + count, 0.0);
    for (int64_t i = 0; i < tiles; ++i)
      for (int64_t j = 0; j < count; ++j) out[j] += partial[i * stride + begin * panel + j];
  });
  for (int64_t c = 0; c < s.C; ++c) {
    const double* from = sums + c / table.columns * (taps + 1) * table.columns + c % table.columns;
    for (int64_t t = 0; t < taps; ++t) ordered[c * taps + t] = from[t * table.columns];
    if (args.grad_depthwise_bias)
      static_cast<A*>(args.grad_depthwise_bias)[c] = static_cast<A>(from[taps * table.columns]);
  }
  const auto store = args.wide_weights ? table.store_doubles_wide : table.store_doubles;
  if (args.grad_depthwise_weight) store(ordered, s.C * taps, args.grad_depthwise_weight);
}

size_t storage_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// grad_z * pointwise weight for output rows [p0, p1) of images [n0, n1), by the forward kernels, into
// out [n1 - n0, p1 - p0, Q, C].
ConvTask pointwise_task(const SeparableBackward& args, int64_t n0, int64_t n1, int64_t p0, int64_t p1, void* out) {
  const ConvShape& s = args.shape;
  const int64_t rows = p1 - p0, Q = s.Q();
  ConvTask task{};
  task.geometry = {n1 - n0, s.K, rows, Q, s.C, 1, 1, 1, 1, 0, 0, 1, 1, rows, Q};
  task.x = args.grad_z;
  task.x.data = static_cast<const char*>(args.grad_z.data) +
                (n0 * args.grad_z.stride_n + p0 * args.grad_z.stride_h) * storage_bytes(args.dtype);
  task.epilogue.activation = Activation::kNone;
  task.epilogue.y = {out, rows * Q * s.C, Q * s.C, s.C};
  return task;
}

void run_on_this_thread(const KernelTable& forward, const ConvTask& task) {
  const int64_t count = forward.conv.rows(task.geometry), panels = panels_of(forward, task.geometry.K);
  const int64_t most =
      std::max(forward.row_granule, forward.conv.tile_rows(task.geometry) / forward.row_granule * forward.row_granule);
  for (int64_t row = 0; row < count; row += most)
    forward.conv.tile(task, {row, std::min(count, row + most), 0, panels});
}

struct DataPass {
  const Kernels& table;
  const KernelTable& forward;
  const SeparableBackward& args;
  const SeparableData data;
  const WeightView weight;  // pointwise, transposed
  const TilePlan plan;
  const BufferSizes bytes;
  char* partial;
  const int64_t stride;  // of the tiles' partial sums, in elements

  SeparableScratch buffers() const {
    SeparableScratch buffers;
    char* memory =
        static_cast<char*>(scratch(Scratch::kStrip, bytes.strip + bytes.grad_mid + bytes.line + bytes.weights));
    buffers.strip = memory;
    buffers.grad_mid = memory += bytes.strip;
    buffers.line = memory += bytes.grad_mid;
    buffers.weights = memory += bytes.line;
    buffers.offsets =
        static_cast<int64_t*>(scratch(Scratch::kOffsets, 2 * args.shape.R * args.shape.S * sizeof(int64_t)));
    return buffers;
  }

  void run(const SeparableTile& tile, int64_t index, const SeparableScratch& buffers) const {
    table.separable_data(data, tile, buffers, partial + index * stride * table.accumulator_bytes);
  }
};

// Tiles of rows, each with the halo of the pointwise data gradient that it needs.
void tiled_pass(const DataPass& pass) {
  const ConvShape& s = pass.args.shape;
  const int64_t panels = divide_up(s.C, pass.table.columns);
  const KernelTable& forward = pass.forward;
  const Geometry pixels{1, s.K, 1, s.Q(), s.C, 1, 1, 1, 1, 0, 0, 1, 1, 1, s.Q()};
  void* packed = scratch(Scratch::kPacked, forward.conv.weight_bytes(pixels));
  pack_conv(forward, forward.conv, pixels, pass.weight, packed);
  parallel_for(0, pass.plan.tiles, 1, [&](int64_t begin, int64_t end) {
    const SeparableScratch buffers = pass.buffers();
    void* grad_mid = scratch(Scratch::kGradient, pass.plan.most_rows * s.Q() * s.C * storage_bytes(pass.args.dtype));
    for (int64_t i = begin; i < end; ++i) {
      SeparableTile tile = make_tile(s, pass.plan.segments, i);
      tile.c0 = 0, tile.c1 = panels;
      if (tile.p0 < tile.p1) {
        ConvTask task = pointwise_task(pass.args, tile.n, tile.n + 1, tile.p0, tile.p1, grad_mid);
        task.weight = packed;
        run_on_this_thread(forward, task);
      }
      tile.grad_mid = {grad_mid, 0, s.Q() * s.C, s.C};
      pass.run(tile, i, buffers);
    }
  });
}

// The pointwise data gradient of some images by all threads, then the rest of them by panels of channels.
void panel_pass(const DataPass& pass) {
  const ConvShape& s = pass.args.shape;
  const int64_t panels = divide_up(s.C, pass.table.columns), image = s.P() * s.Q() * s.C;
  const int64_t storage = static_cast<int64_t>(storage_bytes(pass.args.dtype));
  char* grad_mid = static_cast<char*>(scratch(Scratch::kGradient, pass.plan.images * image * storage));
  for (int64_t n0 = 0; n0 < s.N; n0 += pass.plan.images) {
    const int64_t n1 = std::min(s.N, n0 + pass.plan.images);
    const ConvTask pointwise = pointwise_task(pass.args, n0, n1, 0, s.P(), grad_mid);
    run_unpacked_conv(pass.forward, pass.forward.conv, pointwise, pass.weight, num_threads());
    parallel_for(0, (n1 - n0) * panels, 1, [&](int64_t begin, int64_t end) {
      const SeparableScratch buffers = pass.buffers();
      for (int64_t i = begin; i < end;) {
        const int64_t n = i / panels, last = std::min(end, (n + 1) * panels);
        SeparableTile tile = make_tile(s, 1, n0 + n);
        tile.c0 = i % panels, tile.c1 = last - n * panels;
        tile.grad_mid = {grad_mid + (n * image + tile.p0 * s.Q() * s.C) * storage, 0, s.Q() * s.C, s.C};
        pass.run(tile, n0 + n, buffers);
        i = last;
      }
    });
  }
}

void data_gradients(const Kernels& table, const SeparableBackward& args, const void* packed_depthwise) {
  const ConvShape& s = args.shape;
  const KernelTable& forward = kernel_table(args.dtype);
  WeightView transposed = args.pointwise_weight;
  std::swap(transposed.stride_k, transposed.stride_c);
  const TilePlan plan = make_plan(s, storage_bytes(args.dtype));
  const int64_t stride = divide_up(s.C, table.columns) * (s.R * s.S + 1) * table.columns;
  char* partial = static_cast<char*>(scratch(Scratch::kPartial, plan.tiles * stride * table.accumulator_bytes));
  const DataPass pass{table,   forward, args, {&args, packed_depthwise}, transposed, plan, buffer_sizes(table, s, plan),
                      partial, stride};
  if (plan.by_panels)
    panel_pass(pass);
  else
    tiled_pass(pass);
  if (!args.grad_depthwise_weight && !args.grad_depthwise_bias) return;
  if (args.dtype == DType::kFloat64)
    reduce_depthwise(table, args, reinterpret_cast<const double*>(partial), plan.tiles, stride);
  else
    reduce_depthwise(table, args, reinterpret_cast<const float*>(partial), plan.tiles, stride);
}

void write_zeros(const SeparableBackward& args) {
  const ConvShape& s = args.shape;
  const size_t storage = args.wide_weights ? sizeof(float) : storage_bytes(args.dtype);
  if (args.grad_depthwise_weight) std::memset(args.grad_depthwise_weight, 0, s.C * s.R * s.S * storage);
  if (args.grad_pointwise_weight) std::memset(args.grad_pointwise_weight, 0, s.K * s.C * storage);
  if (args.grad_depthwise_bias) std::memset(args.grad_depthwise_bias, 0, s.C * (args.dtype == DType::kFloat64 ? 8 : 4));
}

}  // namespace

void separable_backward(const SeparableBackward& args) {
  const ConvShape& s = args.shape;
  if (s.N == 0) return write_zeros(args);
  const Kernels& table = kernels(args.dtype);
  count_kernel(table.separable_name);
  void* depthwise = scratch(Scratch::kDepthwise,
                            divide_up(s.C, table.columns) * (s.R * s.S + 1) * table.columns * table.accumulator_bytes);
  table.pack_depthwise(s, args.depthwise_weight, args.depthwise_bias, depthwise);

  if (args.grad_pointwise_weight) {
    WeightGradient gradient{};
    gradient.shape = s;
    gradient.x = args.x;
    gradient.grad_z = args.grad_z;
    gradient.depthwise = depthwise;
    gradient.input_activation = args.input_activation;
    gradient.mid_activation = args.mid_activation;
    training::weight_gradient(table, gradient, {args.grad_pointwise_weight, s.C, 1, 1, 1}, args.wide_weights);
  }
  if (args.grad_x.data || args.grad_depthwise_weight || args.grad_depthwise_bias)
    data_gradients(table, args, depthwise);
}

}  // namespace ik::cpu
