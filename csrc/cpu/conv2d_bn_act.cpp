#include "conv2d_bn_act.h"

#include <algorithm>

#include "common/counters.h"
#include "common/parallel.h"
#include "cpu/packed_weight.h"
#include "cpu/run_conv.h"
#include "cpu/scratch.h"
#include "cpu/tiling.h"

namespace ik::cpu {
namespace {

// Of a thread's L2: input that every thread reads whole, and packed weights that it multiplies before it packs more.
constexpr int64_t kInputBytes = 1280 << 10, kPanelBytes = 768 << 10;

// Threads that pack what they alone multiply need not wait for each other, and the packed weights never leave L2; but
// each of them reads the whole input, of which the other threads wrote a part, and Winograd's algorithm would transform
// it. Few weights take less to be packed by one and read by all.
bool packs_by_thread(const KernelTable& table, const ConvKernels& kernels, const Geometry& g, int64_t weight_bytes,
                     int threads) {
  const int64_t panels = panels_of(table, g.K), weights = panels * table.panel_width * g.R * g.S * g.C;
  const int64_t input_bytes = g.N * g.H * g.W * g.C * (weight_bytes / weights);
  return panels >= threads && input_bytes <= kInputBytes && weight_bytes >= input_bytes / 4 &&
         kernels.tile == table.conv.tile;
}

// One thread's share: consecutive (panel, rows), of which the first and the last panel may be shared with others.
void multiply_share(const KernelTable& table, const ConvKernels& kernels, const ConvTask& task,
                    const WeightView& weight, int64_t panel_bytes, int64_t begin, int64_t end) {
  const Geometry& g = task.geometry;
  const int64_t rows = kernels.rows(g), granule = table.row_granule, granules = ceil_div(rows, granule);
  const int64_t most_panels = std::max<int64_t>(1, kPanelBytes / panel_bytes);
  const int64_t most_rows = std::max(granule, kernels.tile_rows(g) / granule * granule);
  char* const packed = static_cast<char*>(scratch(Scratch::kPacked, most_panels * panel_bytes));
  ConvTask own = task;
  for (int64_t at = begin; at < end;) {
    const int64_t panel = at / granules, first = at % granules, whole = (end - at) / granules;
    const bool part = first > 0 || whole == 0;
    const int64_t panels = part ? 1 : std::min(whole, most_panels);
    const int64_t last = part ? std::min(granules, first + end - at) : granules;
    // Where panel 0 would lie.
    void* const base = packed - panel * panel_bytes;
    kernels.pack(g, weight, base, panel, panel + panels);
    own.weight = base;
    const int64_t row_end = std::min(rows, last * granule);
    for (int64_t row = first * granule; row < row_end; row += most_rows)
      kernels.tile(own, {row, std::min(row_end, row + most_rows), panel, panel + panels});
    at += part ? last - first : panels * granules;
  }
}

ConvTask task_of(const Conv2dForward& args) {
  return {geometry_of(args.shape), args.x, nullptr, {args.scale, args.shift, args.residual, args.activation, args.y}};
}

}  // namespace

const ConvKernels& unpacked_conv_kernels(const KernelTable& table, const Geometry& geometry, int64_t images) {
  return table.by_winograd_once(geometry, images) ? table.winograd : table.conv;
}

void pack_conv(const KernelTable& table, const ConvKernels& kernels, const Geometry& geometry, const WeightView& weight,
               void* packed) {
  parallel_for(0, panels_of(table, geometry.K), 1,
               [&](int64_t begin, int64_t end) { kernels.pack(geometry, weight, packed, begin, end); });
}

void run_conv(const KernelTable& table, const ConvKernels& kernels, const ConvTask& task, int threads) {
  for_each_tile(conv_work(table, kernels, task.geometry), threads, [&](const Tile& tile) { kernels.tile(task, tile); });
}

void run_unpacked_conv(const KernelTable& table, const ConvKernels& kernels, const ConvTask& task,
                       const WeightView& weight, int threads) {
  const Geometry& g = task.geometry;
  const int64_t panels = panels_of(table, g.K), bytes = static_cast<int64_t>(kernels.weight_bytes(g));
  const int64_t granules = ceil_div(kernels.rows(g), table.row_granule);
  threads = std::max(1, threads);
  ConvTask own = task;
  // A tile for each thread, of all panels.
  const int64_t tile_rows = ceil_div(granules, threads) * table.row_granule;
  if (kernels.packs_panels && kernels.packs_panels(g, tile_rows)) {
    own.unpacked = &weight;
    const int64_t rows = granules * table.row_granule;
    return parallel_for(0, ceil_div(rows, tile_rows), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        kernels.tile(own, {i * tile_rows, std::min(rows, (i + 1) * tile_rows), 0, panels});
    });
  }
  if (packs_by_thread(table, kernels, g, bytes, threads)) {
    const int64_t total = panels * granules, shares = std::min<int64_t>(threads, total);
    return parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
      multiply_share(table, kernels, task, weight, bytes / panels, total * begin / shares, total * end / shares);
    });
  }
  void* const packed = scratch(Scratch::kPacked, bytes);
  pack_conv(table, kernels, g, weight, packed);
  own.weight = packed;
  run_conv(table, kernels, own, threads);
}

size_t conv2d_packed_bytes(const ConvShape& shape, DType dtype) {
  const Geometry geometry = geometry_of(shape);
  return kPackedHeaderBytes + conv_kernels(kernel_table(dtype), geometry).weight_bytes(geometry);
}

void conv2d_pack(const ConvShape& shape, DType dtype, const WeightView& weight, void* packed) {
  const KernelTable& table = kernel_table(dtype);
  const Geometry geometry = geometry_of(shape);
  write_packed_header(table, PackedKind::kConv2d, shape, packed);
  pack_conv(table, conv_kernels(table, geometry), geometry, weight, packed_payload(packed));
}

void conv2d_forward(const Conv2dForward& args) {
  const KernelTable& table = kernel_table(args.dtype);
  ConvTask task = task_of(args);
  task.weight = packed_payload(table, PackedKind::kConv2d, args.shape, args.packed_weight);
  const ConvKernels& kernels = conv_kernels(table, task.geometry);
  count_kernel(kernels.counter);
  run_conv(table, kernels, task, num_threads());
}

void conv2d_forward_unpacked(const Conv2dForward& args, const WeightView& weight) {
  const KernelTable& table = kernel_table(args.dtype);
  const ConvTask task = task_of(args);
  const ConvKernels& kernels = unpacked_conv_kernels(table, task.geometry, task.geometry.N);
  count_kernel(kernels.counter);
  run_unpacked_conv(table, kernels, task, weight, num_threads());
}

}  // namespace ik::cpu
