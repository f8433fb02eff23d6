#include "common/parallel.h"
#include "cpu/scratch.h"
#include "cpu/training/products.h"
#include "cpu/training/ranges.h"

namespace ik::cpu::training {
namespace {

constexpr int64_t kGradBytes = 256 << 10;   // packed grad_z of a chunk
constexpr int64_t kStripBytes = 256 << 10;  // one panel of the input under a chunk
constexpr int64_t kTasks = 16;
constexpr int64_t kTilePixels = 32;

struct Plan {
  int64_t rows;  // output rows of a chunk
  int64_t chunks;
  int64_t groups;  // partial sums
  int64_t k_panels;
  int64_t block;  // k panels of a task
  int64_t blocks;
  int64_t partial;  // elements of a partial sum
  int64_t strip_bytes, product_bytes, pairs_bytes, grad_bytes;
};

// Elements of a panel's strips under `rows` output rows, wherever they start.
int64_t strip_pixels(const WeightGradient& args, int64_t rows) {
  const ConvShape& s = args.shape;
  if (args.columns) return rows * s.Q();
  const int64_t images = std::min(s.N, (rows - 1) / s.P() + 2);
  const int64_t extra = std::max<int64_t>(0, (s.R - 1) * s.dilation_h + 1 - s.stride_h);
  return (rows * s.stride_h + images * extra) * ((s.Q() - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1);
}

Plan make_plan(const Kernels& table, const WeightGradient& args) {
  const ConvShape& s = args.shape;
  const int64_t all_rows = s.N * s.P(), Q = s.Q(), element = table.accumulator_bytes;
  Plan plan;
  plan.k_panels = divide_up(s.K, table.rows);
  plan.blocks = divide_up(plan.k_panels * table.rows, table.block_channels);
  plan.block = divide_up(plan.k_panels, plan.blocks);
  plan.blocks = divide_up(plan.k_panels, plan.block);
  const int64_t row_grad = Q * plan.block * table.rows * element;
  plan.rows = std::clamp<int64_t>(kGradBytes / row_grad, 1, all_rows);
  while (plan.rows > 1 && strip_pixels(args, plan.rows) * table.columns * element > kStripBytes)
    plan.rows = divide_up(plan.rows, 2);
  // Enough chunks for every task to have one.
  plan.rows = std::min(plan.rows, divide_up(all_rows, divide_up(kTasks, plan.blocks)));
  plan.chunks = divide_up(all_rows, plan.rows);
  const int64_t window = args.depthwise ? 1 : s.R * s.S;
  const int64_t panels = args.columns ? divide_up(window * s.C, table.columns) : divide_up(s.C, table.columns) * window;
  plan.partial = panels * plan.k_panels * table.rows * table.columns;
  // A partial sum costs a pass over the weight: not for fewer than some hundred pixels.
  plan.groups = std::clamp<int64_t>(all_rows * Q / 512, 1, std::min(divide_up(kTasks, plan.blocks), plan.chunks));
  plan.strip_bytes = strip_pixels(args, plan.rows) * table.columns * element;
  plan.product_bytes = args.depthwise ? plan.rows * Q * table.columns * element : 0;
  // Pixels may be padded to whole tiles.
  plan.grad_bytes = plan.rows * row_grad + kTilePixels * plan.block * table.rows * element;
  plan.pairs_bytes = (plan.rows * Q + kTilePixels) * table.columns * 2;
  return plan;
}

// A 1 x n or n x 1 window without padding across reads every stride-th row or column: drop the others.
ConvShape drop_skipped(ConvShape s, NhwcInput& x) {
  if (s.R == 1 && s.pad_h == 0) {
    x.stride_h *= s.stride_h;
    s.H = s.P();
    s.stride_h = s.dilation_h = 1;
  }
  if (s.S == 1 && s.pad_w == 0) {
    x.stride_w *= s.stride_w;
    s.W = s.Q();
    s.stride_w = s.dilation_w = 1;
  }
  return s;
}

}  // namespace

void weight_gradient(const Kernels& table, const WeightGradient& given, void* grad_weight) {
  WeightGradient args = given;
  args.shape = drop_skipped(given.shape, args.x);
  const ConvShape& s = args.shape;
  args.columns = !args.depthwise && s.C < table.columns / 2 && s.R * s.S > 1;
  const Plan plan = make_plan(table, args);
  const size_t element = table.accumulator_bytes;
  char* partial = static_cast<char*>(scratch(Scratch::kPartial, plan.groups * plan.partial * element));

  parallel_for(0, plan.groups * plan.blocks, 1, [&](int64_t begin, int64_t end) {
    char* memory =
        static_cast<char*>(scratch(Scratch::kStrip, plan.strip_bytes + plan.product_bytes + plan.pairs_bytes));
    WeightScratch buffers;
    buffers.strip = memory;
    buffers.product = memory + plan.strip_bytes;
    buffers.pairs = memory + plan.strip_bytes + plan.product_bytes;
    buffers.grad = scratch(Scratch::kGradient, plan.grad_bytes);
    buffers.row_offset =
        static_cast<int64_t*>(scratch(Scratch::kOffsets, (plan.rows * (s.Q() + 1) + s.R * s.S) * sizeof(int64_t)));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / plan.blocks, block = task % plan.blocks;
      const int64_t k0 = block * plan.block, k1 = std::min(plan.k_panels, k0 + plan.block);
      const int64_t chunk0 = plan.chunks * group / plan.groups, chunk1 = plan.chunks * (group + 1) / plan.groups;
      for (int64_t chunk = chunk0; chunk < chunk1; ++chunk)
        table.weight_gradient(args, chunk * plan.rows, std::min(s.N * s.P(), (chunk + 1) * plan.rows), k0, k1, buffers,
                              partial + group * plan.partial * element, chunk == chunk0);
    }
  });
  parallel_for(0, plan.k_panels, 1, [&](int64_t begin, int64_t end) {
    table.weight_finish(args, partial, plan.groups, plan.partial, begin, end, grad_weight);
  });
}

}  // namespace ik::cpu::training
