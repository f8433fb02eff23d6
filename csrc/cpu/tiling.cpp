#include "cpu/tiling.h"

#include <algorithm>

#include "common/parallel.h"

namespace ik::cpu {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Split {
  int64_t rows, panels;
};

// Splitting panels repeats the producer, splitting rows leaves short tiles: take the pair whose slowest thread is
// first.
Split split_for(const Work& work, int64_t granules, int threads) {
  Split best{1, 1};
  double best_cost = -1;
  for (int64_t panels = 1; panels <= std::min<int64_t>(threads, work.panels); panels++) {
    const int64_t rows = std::min(std::max<int64_t>(1, threads / panels), granules);
    const double cost = static_cast<double>(ceil_div(granules, rows)) *
                        (static_cast<double>(ceil_div(work.panels, panels)) + work.produce_cost);
    if (best_cost >= 0 && cost >= best_cost) continue;
    best = {rows, panels};
    best_cost = cost;
  }
  return best;
}

}  // namespace

Geometry geometry_of(const ConvShape& s) {
  return {s.N,        s.C,     s.H,     s.W,          s.K,          s.R,   s.S,  s.stride_h,
          s.stride_w, s.pad_h, s.pad_w, s.dilation_h, s.dilation_w, s.P(), s.Q()};
}

Geometry band_of(const Geometry& geometry, int64_t p_begin, int64_t p_end) {
  Geometry band = geometry;
  band.pad_h -= p_begin * geometry.stride_h;
  band.P = p_end - p_begin;
  return band;
}

void for_each_tile(const Work& work, int threads, const std::function<void(const Tile&)>& body) {
  if (work.rows <= 0 || work.panels <= 0) return;
  const int64_t granules = ceil_div(work.rows, work.row_granule);
  Split split = split_for(work, granules, std::max(1, threads));
  const int64_t tile_granules = std::max<int64_t>(1, work.tile_rows / work.row_granule);
  split.rows *= ceil_div(ceil_div(granules, split.rows), tile_granules);
  auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t row = i / split.panels, panel = i % split.panels;
      Tile tile;
      tile.row_begin = granules * row / split.rows * work.row_granule;
      tile.row_end = std::min(work.rows, granules * (row + 1) / split.rows * work.row_granule);
      tile.panel_begin = work.panels * panel / split.panels;
      tile.panel_end = work.panels * (panel + 1) / split.panels;
      body(tile);
    }
  };
  const int64_t tiles = split.rows * split.panels;
  if (threads <= 1 || tiles == 1)
    run(0, tiles);
  else
    parallel_for(0, tiles, 1, run);
}

}  // namespace ik::cpu
