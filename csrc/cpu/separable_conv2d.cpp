#include "separable_conv2d.h"

#include <algorithm>

#include "common/counters.h"
#include "common/parallel.h"
#include "cpu/packed_weight.h"
#include "cpu/run_separable.h"
#include "cpu/scratch.h"
#include "cpu/tiling.h"

namespace ik::cpu {
namespace {

void pack(const KernelTable& table, const SeparableKernels& kernels, const Geometry& geometry,
          const WeightView& depthwise, const WeightView& pointwise, void* packed_depthwise, void* packed_pointwise) {
  table.depthwise_pack(geometry, depthwise, packed_depthwise);
  parallel_for(0, kernels.panels(geometry), 1, [&](int64_t begin, int64_t end) {
    kernels.pointwise_pack(geometry, pointwise, packed_pointwise, begin, end);
  });
}

// packed_depthwise and packed_pointwise: without headers.
SeparableTask task_of(const SeparableForward& args, const void* packed_depthwise, const void* packed_pointwise) {
  SeparableTask task;
  task.geometry = geometry_of(args.shape);
  task.x = args.x;
  task.depthwise = packed_depthwise;
  task.pointwise = packed_pointwise;
  task.depthwise_bias = args.depthwise_bias;
  task.input_activation = args.input_activation;
  task.mid_activation = args.mid_activation;
  task.epilogue = {args.scale, args.shift, args.residual, args.activation, args.y};
  return task;
}

void run(const KernelTable& table, const SeparableKernels& kernels, const SeparableTask& task) {
  count_kernel(kernels.counter);
  for_each_tile(separable_work(table, kernels, task.geometry), num_threads(),
                [&](const Tile& tile) { kernels.tile(task, tile); });
}

// Threads that share the channels pack what they alone multiply, and the packed weights never leave L2; but each of
// them computes the whole depthwise part.
bool packs_by_thread(const SeparableKernels& kernels, const Geometry& g, int threads) {
  constexpr int64_t kPanelsEach = 8;
  return kernels.packing_rows && threads > 1 && g.K >= g.N * g.P * g.Q && kernels.panels(g) >= kPanelsEach * threads;
}

void run_packing(const KernelTable& table, const SeparableKernels& kernels, const SeparableTask& task, int threads) {
  const Geometry& g = task.geometry;
  count_kernel(kernels.counter);
  const int64_t panels = kernels.panels(g), granules = ceil_div(kernels.rows(g), table.row_granule);
  const int64_t tiles = ceil_div(granules * table.row_granule, kernels.packing_rows(g));
  parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; thread++)
      for (int64_t i = 0; i < tiles; i++) {
        // A panel too many goes to one thread in one tile and to another in the next.
        const auto first = [&](int64_t t) { return (panels * t + (i % 2 ? threads - 1 : 0)) / threads; };
        kernels.tile(task, {granules * i / tiles * table.row_granule,
                            std::min(kernels.rows(g), granules * (i + 1) / tiles * table.row_granule), first(thread),
                            first(thread + 1)});
      }
  });
}

}  // namespace

size_t separable_packed_depthwise_bytes(const ConvShape& shape, DType dtype) {
  return kPackedHeaderBytes + kernel_table(dtype).depthwise_weight_bytes(geometry_of(shape));
}

size_t separable_packed_pointwise_bytes(const ConvShape& shape, DType dtype) {
  const Geometry geometry = geometry_of(shape);
  return kPackedHeaderBytes + separable_kernels(kernel_table(dtype), geometry).pointwise_bytes(geometry);
}

void separable_pack(const ConvShape& shape, DType dtype, const WeightView& depthwise, const WeightView& pointwise,
                    void* packed_depthwise, void* packed_pointwise) {
  const KernelTable& table = kernel_table(dtype);
  const Geometry geometry = geometry_of(shape);
  write_packed_header(table, PackedKind::kDepthwise, shape, packed_depthwise);
  write_packed_header(table, PackedKind::kPointwise, shape, packed_pointwise);
  pack(table, separable_kernels(table, geometry), geometry, depthwise, pointwise, packed_payload(packed_depthwise),
       packed_payload(packed_pointwise));
}

void separable_forward(const SeparableForward& args) {
  const KernelTable& table = kernel_table(args.dtype);
  run(table, separable_kernels(table, geometry_of(args.shape)),
      task_of(args, packed_payload(table, PackedKind::kDepthwise, args.shape, args.packed_depthwise),
              packed_payload(table, PackedKind::kPointwise, args.shape, args.packed_pointwise)));
}

void separable_forward_unpacked(const SeparableForward& args, const WeightView& depthwise,
                                const WeightView& pointwise) {
  const KernelTable& table = kernel_table(args.dtype);
  const Geometry geometry = geometry_of(args.shape);
  void* const packed_depthwise = scratch(Scratch::kDepthwise, table.depthwise_weight_bytes(geometry));
  // Seven quarters of the weights for Strassen's algorithm are too many to write for one use.
  const SeparableKernels& kernels = table.separable;
  if (packs_by_thread(kernels, geometry, num_threads())) {
    table.depthwise_pack(geometry, depthwise, packed_depthwise);
    SeparableTask task = task_of(args, packed_depthwise, nullptr);
    task.unpacked = &pointwise;
    return run_packing(table, kernels, task, num_threads());
  }
  void* const packed_pointwise = scratch(Scratch::kPacked, kernels.pointwise_bytes(geometry));
  pack(table, kernels, geometry, depthwise, pointwise, packed_depthwise, packed_pointwise);
  run(table, kernels, task_of(args, packed_depthwise, packed_pointwise));
}

}  // namespace ik::cpu
