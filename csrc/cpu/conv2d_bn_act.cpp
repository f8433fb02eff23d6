#include "conv2d_bn_act.h"

#include "common/counters.h"
#include "common/parallel.h"
#include "cpu/packed_weight.h"
#include "cpu/run_conv.h"
#include "cpu/tiling.h"

namespace ik::cpu {

void run_conv(const KernelTable& table, const ConvTask& task, int threads) {
  for_each_tile(conv_work(table, task.geometry), threads, [&](const Tile& tile) { table.conv_tile(task, tile); });
}

size_t conv2d_packed_bytes(const ConvShape& shape, DType dtype) {
  return kPackedHeaderBytes + kernel_table(dtype).conv_weight_bytes(geometry_of(shape));
}

void conv2d_pack(const ConvShape& shape, DType dtype, const WeightView& weight, void* packed) {
  const KernelTable& table = kernel_table(dtype);
  const Geometry geometry = geometry_of(shape);
  write_packed_header(table, PackedKind::kConv2d, shape, packed);
  parallel_for(0, panels_of(table, shape.K), 1, [&](int64_t begin, int64_t end) {
    table.conv_pack(geometry, weight, packed_payload(packed), begin, end);
  });
}

void conv2d_forward(const Conv2dForward& args) {
  const KernelTable& table = kernel_table(args.dtype);
  const ConvTask task{geometry_of(args.shape),
                      args.x,
                      packed_payload(table, PackedKind::kConv2d, args.shape, args.packed_weight),
                      {args.scale, args.shift, args.residual, args.activation, args.y}};
  count_kernel(conv_counter(table, task.geometry));
  run_conv(table, task, num_threads());
}

}  // namespace ik::cpu
