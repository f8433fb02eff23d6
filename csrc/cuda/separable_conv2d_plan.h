// Which separable kernel runs a shape, and in what tiles. Plain C++ on the host.
#pragma once
#include <algorithm>
#include <cstdint>
#include <numeric>

#include "common/types.h"
#include "cuda/context.h"
#include "cuda/shared_limit.h"

namespace ik::cuda::separable {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Output pixels in runs of `rows` along strips of `width` columns, and the input pixels that one run reads.
struct Strips {
  int64_t width = 0;
  int64_t strips = 0;     // of an image
  int64_t runs = 0;       // of a strip
  int64_t halo_rows = 0;  // 0: no halo, the kernel gathers
  int64_t halo_columns = 0;

  int64_t halo_pixels() const { return halo_rows * halo_columns; }
  int64_t runs_of_image() const { return strips * runs; }
};

inline Strips strips_of_width(const ConvShape& shape, int64_t width, int64_t rows) {
  const int64_t runs = divide_up(shape.P() * width, rows);
  // Runs begin at multiples of `rows`: in the worst case so far into a row of the strip.
  const int64_t latest_start = runs == 1 ? 0 : width - std::gcd(width, rows);
  const int64_t output_rows = (latest_start + rows - 1) / width + 1;
  return {width, divide_up(shape.Q(), width), runs,
          (output_rows - 1) * shape.stride_h + shape.dilation_h * (shape.R - 1) + 1,
          (width - 1) * shape.stride_w + shape.dilation_w * (shape.S - 1) + 1};
}

// The width with the least work: a pixel costs four times in the product and the depthwise sums what it costs to load.
// Without a width whose halo fits: strips as wide as the image, without a halo.
inline Strips choose_strips(const ConvShape& shape, int64_t rows, int64_t group, int64_t halo_limit) {
  constexpr int64_t kWidest = 512;
  constexpr int64_t kComputeCost = 4;
  Strips best;
  int64_t best_cost = 0;
  for (int64_t width = group; width <= std::min(round_up(shape.Q(), group), kWidest); width += group) {
    const Strips strips = strips_of_width(shape, width, rows);
    if (strips.halo_pixels() > halo_limit) continue;
    const int64_t cost = strips.runs_of_image() * (kComputeCost * rows + strips.halo_pixels());
    if (best.width != 0 && cost >= best_cost) continue;
    best = strips;
    best_cost = cost;
  }
  if (best.width != 0) return best;
  best = strips_of_width(shape, round_up(shape.Q(), group), rows);
  best.halo_rows = 0;
  best.halo_columns = 0;
  return best;
}

// What a compiled tile offers.
struct TileSize {
  int64_t rows, columns;
  int64_t shared_without_halo;  // bytes
  // Clocks of a multiprocessor for one tile and 128 bytes of channels: of the busiest pipe, counted in the compiled
  // loops for a 3 x 3 window.
  int64_t chunk_clocks;
  bool can_gather;
};

struct TilePlan {
  int size = -1;  // index into the sizes given
  Strips strips;
  int64_t column_tiles = 0;
  int64_t tiles = 0;

  bool gathers() const { return strips.halo_rows == 0; }
};

// The tile that takes least time where every multiprocessor works on as many tiles as its share, rounded up.
template <int kSizes>
TilePlan choose_tile(const ConvShape& shape, int64_t pixel_bytes, const TileSize (&sizes)[kSizes], int64_t group,
                     bool can_load_halo, const Context& context) {
  TilePlan best;
  int64_t best_clocks = 0;
  for (int i = 0; i < kSizes; ++i) {
    const TileSize& size = sizes[i];
    const int64_t room = shared_limit(context.sm) - size.shared_without_halo;
    if (room < 0) continue;
    constexpr int64_t kStages = 2;
    const int64_t halo_limit = can_load_halo ? room / (kStages * pixel_bytes) : 0;
    TilePlan plan;
    plan.size = i;
    plan.strips = choose_strips(shape, size.rows, group, halo_limit);
    plan.column_tiles = divide_up(shape.K, size.columns);
    plan.tiles = shape.N * plan.strips.runs_of_image() * plan.column_tiles;
    if (plan.gathers() && !size.can_gather) continue;
    // Gathering reads every tap from the cache on its own.
    constexpr int64_t kGatherPenalty = 2;
    const int64_t clocks =
        divide_up(plan.tiles, context.multiprocessors) * size.chunk_clocks * (plan.gathers() ? kGatherPenalty : 1);
    if (best.size >= 0 && clocks >= best_clocks) continue;
    best = plan;
    best_clocks = clocks;
  }
  return best;
}

// ---- the kernel for few channels

// Workers go down the strips of all images, in segments of a multiple of `step_rows` rows.
struct RowsPlan {
  int64_t workers = 0;  // of a block; fewer than kFewestWorkers: the kernel does not pay
  int64_t strips = 0, segments = 0, segment_rows = 0;
};

constexpr int64_t kFewestWorkers = 2;  // while one waits for memory the other computes

struct RowsSize {
  int64_t width, step_rows;
  int64_t shared_without_workers, shared_of_worker;
  int64_t most_workers;
};

// The length with the least time for the worker that has most to do: its first loads, before which it cannot compute,
// cost about as much as a step.
inline RowsPlan plan_rows(const ConvShape& shape, const RowsSize& size, const Context& context) {
  RowsPlan plan;
  const int64_t room = shared_limit(context.sm) - size.shared_without_workers;
  plan.workers = std::clamp<int64_t>(room / size.shared_of_worker, 0, size.most_workers);
  plan.strips = divide_up(shape.Q(), size.width);
  const int64_t workers = std::max<int64_t>(plan.workers, 1) * context.multiprocessors;
  int64_t best_time = 0;
  for (int64_t rows = round_up(shape.P(), size.step_rows); rows > 0; rows -= size.step_rows) {
    const int64_t segments = divide_up(shape.P(), rows);
    const int64_t time = divide_up(shape.N * plan.strips * segments, workers) * (rows + size.step_rows);
    if (plan.segment_rows != 0 && time >= best_time) continue;
    plan.segments = segments;
    plan.segment_rows = rows;
    best_time = time;
  }
  return plan;
}

}  // namespace ik::cuda::separable
