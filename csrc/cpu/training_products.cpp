#include <atomic>

#include "common/counters.h"
#include "common/parallel.h"
#include "cpu/scratch.h"
#include "cpu/training/products.h"
#include "cpu/training/ranges.h"

namespace ik::cpu::training {
namespace {

constexpr int64_t kGradBytes = 1280 << 10;  // packed grad_z of a chunk: stays in L2
constexpr int64_t kStripBytes = 128 << 10;  // one panel of the input under a chunk
constexpr int64_t kChunkPixels = 400;       // about: each chunk is a visit to the weight's gradient
constexpr int64_t kGroupPixels = 1024;      // worth a partial sum, which costs a pass over the weight
constexpr int64_t kFewPixels = 512;         // worth one that stays in L2
constexpr int64_t kPartialBytes = 448 << 10;
constexpr int64_t kGroups = 16;
constexpr int64_t kTilePixels = 32;
// By Winograd's algorithm a strip holds all products of each block.
constexpr int64_t kChunkBlocks = 96;
constexpr int64_t kBlockStripBytes = 256 << 10;
constexpr int64_t kLeastPixels = 256;  // fewer do not earn the passes over the sums of all products

// What the sums of a pair of panels run over.
struct Extent {
  int64_t rows;    // of output pixels, or of Winograd's blocks of them, in all images
  int64_t length;  // of a row
  int64_t sums;    // taps, or Winograd's products
  int64_t copies;  // of grad_z and x in the buffers of a chunk
};

Extent extent_of(const WeightGradient& args, const WinogradGradient* winograd) {
  const ConvShape& s = args.shape;
  if (winograd)
    return {s.N * divide_up(s.P(), winograd->height), divide_up(s.Q(), winograd->width), winograd->products,
            winograd->products};
  return {s.N * s.P(), s.Q(), args.depthwise || args.columns ? 1 : s.R * s.S, 1};
}

struct Plan {
  Extent extent;
  int64_t rows;  // of a chunk, at most
  int64_t chunks;
  int64_t groups;  // partial sums
  int64_t k_panels, c_panels;
  int64_t k_blocks, c_blocks;  // tasks of a group
  int64_t partial;             // elements of a partial sum
  int64_t strip_bytes, product_bytes, pairs_bytes, grad_bytes;
};

// Pixels of a panel's strips under `rows` rows, wherever they start.
int64_t strip_pixels(const WeightGradient& args, const Extent& extent, int64_t rows) {
  const ConvShape& s = args.shape;
  if (args.columns || extent.copies > 1) return rows * extent.length * extent.copies;
  const int64_t images = std::min(s.N, (rows - 1) / s.P() + 2);
  const int64_t extra = std::max<int64_t>(0, (s.R - 1) * s.dilation_h + 1 - s.stride_h);
  return (rows * s.stride_h + images * extra) * ((s.Q() - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1);
}

struct Blocks {
  int64_t c, k;
};

// How the threads share the channels of `groups` of pixels: the blocks whose slowest thread is first. In cycles per
// pixel: a vector of columns costs so many per row of the gradient that is multiplied, and each block packs its own
// rows and columns.
Blocks share_channels(const Kernels& table, const WeightGradient& args, const Plan& plan, int64_t channels) {
  const ConvShape& s = args.shape;
  const int64_t threads = num_threads(), lanes = table.columns / 2, vectors = divide_up(channels, lanes);
  const int64_t product = divide_up(table.rows * plan.extent.sums, 2), copies = plan.extent.copies;
  const int64_t pack_columns = args.depthwise ? 4 + s.R * s.S : 4 * copies, pack_rows = 4 * copies;
  Blocks best{1, 1};
  int64_t best_cost = -1;
  for (int64_t c = 1; c <= plan.c_panels; ++c)
    for (int64_t k = 1; k <= plan.k_panels && (k == 1 || plan.groups * c * k <= 4 * threads); ++k) {
      const int64_t rounds = divide_up(plan.groups * c * k, threads);
      const int64_t columns = std::min(2 * divide_up(plan.c_panels, c), vectors), rows = divide_up(plan.k_panels, k);
      const int64_t cost = rounds * (columns * (rows * product + pack_columns) + rows * pack_rows);
      if (best_cost >= 0 && cost >= best_cost) continue;
      best = {c, k};
      best_cost = cost;
    }
  return best;
}

Plan make_plan(const Kernels& table, const WeightGradient& args, const WinogradGradient* winograd) {
  const ConvShape& s = args.shape;
  const int64_t element = table.accumulator_bytes, channels = args.columns ? s.R * s.S * s.C : s.C;
  Plan plan;
  plan.extent = extent_of(args, winograd);
  const auto [rows, length, window, copies] = plan.extent;
  plan.k_panels = divide_up(s.K, table.rows);
  plan.c_panels = divide_up(channels, table.columns);
  const int64_t row_grad = length * copies * plan.k_panels * table.rows * element;
  const int64_t chunk = winograd ? kChunkBlocks : kChunkPixels, strip = winograd ? kBlockStripBytes : kStripBytes;
  plan.rows = std::clamp<int64_t>(std::min(kGradBytes / row_grad, divide_up(chunk, length)), 1, rows);
  while (plan.rows > 1 && strip_pixels(args, plan.extent, plan.rows) * table.columns * element > strip)
    plan.rows = divide_up(plan.rows, 2);
  plan.chunks = divide_up(rows, plan.rows);
  plan.partial = plan.c_panels * window * plan.k_panels * table.rows * table.columns;
  // Threads that share the pixels instead of the channels read what they wrote themselves, and pack it once.
  const int64_t group = plan.partial * element <= kPartialBytes ? kFewPixels : kGroupPixels;
  plan.groups = std::clamp<int64_t>(rows * length / group, 1, std::min(kGroups, plan.chunks));
  // As many for every group, or threads would wait for the one with more.
  plan.chunks = std::min(rows, divide_up(plan.chunks, plan.groups) * plan.groups);
  plan.rows = divide_up(rows, plan.chunks);
  const Blocks blocks = share_channels(table, args, plan, channels);
  plan.c_blocks = blocks.c;
  plan.k_blocks = blocks.k;
  plan.strip_bytes = strip_pixels(args, plan.extent, plan.rows) * table.columns * element;
  plan.product_bytes = args.depthwise ? plan.rows * length * table.columns * element : 0;
  // Pixels may be padded to whole tiles.
  const int64_t block = divide_up(plan.k_panels, plan.k_blocks) * table.rows * element;
  plan.grad_bytes = (plan.rows * length * copies + kTilePixels) * block;
  constexpr int64_t kHalf = 2, kPair = 4;  // bytes
  plan.pairs_bytes = 0;
  if (table.storage_bytes == kHalf && copies == 1) {
    plan.pairs_bytes =
        (strip_pixels(args, plan.extent, plan.rows) + plan.rows * length + kTilePixels) * table.columns * kPair;
  }
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

// Blocks of the gradient itself, where it has the accumulation type and adjacent channels.
bool can_sum_in_place(const Kernels& table, const WeightGradient& args, const WeightOutput& out, bool wide) {
  const ConvShape& s = args.shape;
  const int64_t window = args.depthwise ? 1 : s.R * s.S;
  return table.sums_in_place && (wide || table.storage_bytes == table.accumulator_bytes) &&
         (out.stride_c == 1 || s.C == 1) &&
         (window == 1 || (out.stride_s == s.C && (s.R == 1 || out.stride_r == s.S * s.C)));
}

// False if the gradient has to be computed by the definition.
bool sum_by(const WeightKernels& kernels, const Kernels& table, const WeightGradient& args, const Plan& plan,
            const WeightOutput& grad_weight, bool wide) {
  const ConvShape& s = args.shape;
  const size_t element = table.accumulator_bytes;
  const int64_t tile = table.rows * table.columns, window = plan.extent.sums;
  const bool in_place = plan.groups == 1 && plan.extent.copies == 1 && can_sum_in_place(table, args, grad_weight, wide);
  WeightSums sums;
  if (in_place)
    sums = {grad_weight.data, table.columns, s.C, table.rows * grad_weight.stride_k, grad_weight.stride_k, false};
  else
    sums = {scratch(Scratch::kPartial, plan.groups * plan.partial * element),
            window * plan.k_panels * tile,
            plan.k_panels * tile,
            tile,
            table.columns,
            true};

  parallel_for(0, plan.groups * plan.c_blocks * plan.k_blocks, 1, [&](int64_t begin, int64_t end) {
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
      const int64_t k_block = task % plan.k_blocks, c_block = task / plan.k_blocks % plan.c_blocks;
      const int64_t group = task / plan.k_blocks / plan.c_blocks;
      const int64_t chunk0 = plan.chunks * group / plan.groups, chunk1 = plan.chunks * (group + 1) / plan.groups;
      WeightBlock block;
      block.k0 = plan.k_panels * k_block / plan.k_blocks, block.k1 = plan.k_panels * (k_block + 1) / plan.k_blocks;
      block.c0 = plan.c_panels * c_block / plan.c_blocks, block.c1 = plan.c_panels * (c_block + 1) / plan.c_blocks;
      WeightSums own = sums;
      own.data = static_cast<char*>(sums.data) + group * plan.partial * element;
      for (int64_t chunk = chunk0; chunk < chunk1; ++chunk) {
        block.row0 = plan.extent.rows * chunk / plan.chunks, block.row1 = plan.extent.rows * (chunk + 1) / plan.chunks;
        kernels.gradient(args, block, buffers, own, chunk == chunk0);
      }
    }
  });
  if (in_place) return true;
  const auto finish = wide ? kernels.finish_wide : kernels.finish;
  std::atomic<bool> finished{true};
  parallel_for(0, plan.k_panels, 1, [&](int64_t begin, int64_t end) {
    if (!finish(args, sums, plan.groups, plan.partial, begin, end, grad_weight)) finished = false;
  });
  return finished;
}

// Null if the gradient goes by the definition.
const WinogradGradient* winograd_of(const Kernels& table, const WeightGradient& args) {
  const ConvShape& s = args.shape;
  constexpr int64_t kLeastChannels = 16;
  if (args.depthwise || s.stride_h != 1 || s.stride_w != 1 || (s.R > 1 && s.dilation_h != 1) ||
      (s.S > 1 && s.dilation_w != 1) || s.C < kLeastChannels || s.K < kLeastChannels ||
      s.N * s.P() * s.Q() < kLeastPixels)
    return nullptr;
  for (const WinogradGradient *way = table.winograd, *end = way + table.winograd_count; way < end; ++way)
    if (way->R == s.R && way->S == s.S && s.C * s.K <= way->most_weights) return way;
  return nullptr;
}

}  // namespace

void weight_gradient(const Kernels& table, const WeightGradient& given, const WeightOutput& grad_weight, bool wide) {
  WeightGradient args = given;
  if (const WinogradGradient* const winograd = winograd_of(table, args)) {
    count_kernel(table.winograd_name);
    if (sum_by(winograd->kernels, table, args, make_plan(table, args, winograd), grad_weight, wide)) return;
  }
  args.shape = drop_skipped(given.shape, args.x);
  args.columns = !args.depthwise && args.shape.C < table.columns / 2 && args.shape.R * args.shape.S > 1;
  if (!args.depthwise) count_kernel(table.conv_name);
  sum_by(table.weight, table, args, make_plan(table, args, nullptr), grad_weight, wide);
}

}  // namespace ik::cpu::training
