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
// each of them reads the whole input, and Winograd's algorithm would transform it.
bool packs_by_thread(const KernelTable& table, const Geometry& g, int64_t weight_bytes, int threads) {
  const int64_t panels = panels_of(table, g.K), weights = panels * table.panel_width * g.R * g.S * g.C;
  const int64_t input_bytes = g.N * g.H * g.W * g.C * (weight_bytes / weights);
  return panels >= threads && input_bytes <= kInputBytes && !table.by_winograd(g);
}

// One thread's share: consecutive (panel, rows), of which the first and the last panel may be shared with others.
void multiply_share(const KernelTable& table, const ConvTask& task, const WeightView& weight, int64_t panel_bytes,
                    int64_t begin, int64_t end) {
  const Geometry& g = task.geometry;
  const int64_t rows = table.conv_rows(g), granule = table.row_granule, granules = ceil_div(rows, granule);
  const int64_t most_panels = std::max<int64_t>(1, kPanelBytes / panel_bytes);
  const int64_t most_rows = std::max(granule, table.conv_tile_rows(g) / granule * granule);
  char* const packed = static_cast<char*>(scratch(Scratch::kPacked, most_panels * panel_bytes));
  ConvTask own = task;
  for (int64_t at = begin; at < end;) {
    const int64_t panel = at / granules, first = at % granules, whole = (end - at) / granules;
    const bool part = first > 0 || whole == 0;
    const int64_t panels = part ? 1 : std::min(whole, most_panels);
    const int64_t last = part ? std::min(granules, first + end - at) : granules;
    // Where panel 0 would lie.
    void* const base = packed - panel * panel_bytes;
    table.conv_pack(g, weight, base, panel, panel + panels);
    own.weight = base;
    const int64_t row_end = std::min(rows, last * granule);
    for (int64_t row = first * granule; row < row_end; row += most_rows)
      table.conv_tile(own, {row, std::min(row_end, row + most_rows), panel, panel + panels});
    at += part ? last - first : panels * granules;
  }
}

ConvTask task_of(const Conv2dForward& args) {
  return {geometry_of(args.shape), args.x, nullptr, {args.scale, args.shift, args.residual, args.activation, args.y}};
}

}  // namespace

void pack_conv(const KernelTable& table, const Geometry& geometry, const WeightView& weight, void* packed) {
  parallel_for(0, panels_of(table, geometry.K), 1,
               [&](int64_t begin, int64_t end) { table.conv_pack(geometry, weight, packed, begin, end); });
}

void run_conv(const KernelTable& table, const ConvTask& task, int threads) {
  for_each_tile(conv_work(table, task.geometry), threads, [&](const Tile& tile) { table.conv_tile(task, tile); });
}

void run_unpacked_conv(const KernelTable& table, const ConvTask& task, const WeightView& weight, int threads) {
  const Geometry& g = task.geometry;
  const int64_t panels = panels_of(table, g.K), bytes = static_cast<int64_t>(table.conv_weight_bytes(g));
  if (!packs_by_thread(table, g, bytes, threads)) {
    ConvTask whole = task;
    void* const packed = scratch(Scratch::kPacked, bytes);
    pack_conv(table, g, weight, packed);
    whole.weight = packed;
    return run_conv(table, whole, threads);
  }
  const int64_t total = panels * ceil_div(table.conv_rows(g), table.row_granule);
  const int64_t shares = std::min<int64_t>(std::max(1, threads), total);
  parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    multiply_share(table, task, weight, bytes / panels, total * begin / shares, total * end / shares);
  });
}

size_t conv2d_packed_bytes(const ConvShape& shape, DType dtype) {
  return kPackedHeaderBytes + kernel_table(dtype).conv_weight_bytes(geometry_of(shape));
}

void conv2d_pack(const ConvShape& shape, DType dtype, const WeightView& weight, void* packed) {
  const KernelTable& table = kernel_table(dtype);
  const Geometry geometry = geometry_of(shape);
  write_packed_header(table, PackedKind::kConv2d, shape, packed);
  pack_conv(table, geometry, weight, packed_payload(packed));
}

void conv2d_forward(const Conv2dForward& args) {
  const KernelTable& table = kernel_table(args.dtype);
  ConvTask task = task_of(args);
  task.weight = packed_payload(table, PackedKind::kConv2d, args.shape, args.packed_weight);
  count_kernel(conv_counter(table, task.geometry));
  run_conv(table, task, num_threads());
}

void conv2d_forward_unpacked(const Conv2dForward& args, const WeightView& weight) {
  const KernelTable& table = kernel_table(args.dtype);
  const ConvTask task = task_of(args);
  count_kernel(conv_counter(table, task.geometry));
  run_unpacked_conv(table, task, weight, num_threads());
}

}  // namespace ik::cpu
