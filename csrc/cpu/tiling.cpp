#include "cpu/tiling.h"

#include <algorithm>

#include "common/parallel.h"

namespace ik::cpu {
namespace {

struct Split {
  int64_t rows, panels;
};

// Splitting panels repeats the producer, splitting rows leaves short tiles and repeats what a panel takes: take the
// pair whose slowest thread is first.
Split split_for(const Work& work, int64_t granules, int threads) {
  Split best{1, 1};
  double best_cost = -1;
  for (int64_t panels = 1; panels <= std::min<int64_t>(threads, work.panels); panels++) {
    const int64_t rows = std::min(std::max<int64_t>(1, threads / panels), granules);
    const double own_rows = static_cast<double>(ceil_div(granules, rows));
    const double own_panels = static_cast<double>(ceil_div(work.panels, panels));
    const double cost = own_rows * (own_panels + work.produce_cost) + own_panels * work.panel_cost;
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
  band.first_p += p_begin;
  return band;
}

Work conv_work(const KernelTable& table, const ConvKernels& kernels, const Geometry& geometry) {
  Work work;
  work.rows = kernels.rows(geometry);
  work.row_granule = table.row_granule;
  work.tile_rows = kernels.tile_rows(geometry);
  work.panels = panels_of(table, geometry.K);
  work.produce_cost = 0.3;  // a load and a store for kMR multiply-adds a panel
  work.panel_cost = kernels.tile == table.restored.tile ? 1 : 0;
  return work;
}

Work separable_work(const KernelTable& table, const SeparableKernels& kernels, const Geometry& geometry) {
  Work work;
  work.rows = kernels.rows(geometry);
  work.row_granule = table.row_granule;
  work.tile_rows = kernels.tile_rows(geometry);
  work.panels = kernels.panels(geometry);
  // In multiply-adds: a tap takes about as long as a column of the product.
  work.produce_cost = static_cast<double>(geometry.R * geometry.S) / static_cast<double>(table.panel_width);
  work.panel_cost = 0;
  return work;
}

Tiling::Tiling(const Work& work, int threads)
    : work_(work), granules_(ceil_div(std::max<int64_t>(0, work.rows), work.row_granule)), rows_(0), panels_(1) {
  if (work.rows <= 0 || work.panels <= 0) return;
  const Split split = split_for(work, granules_, std::max(1, threads));
  const int64_t tile_granules = std::max<int64_t>(1, work.tile_rows / work.row_granule);
  rows_ = split.rows * ceil_div(ceil_div(granules_, split.rows), tile_granules);
  panels_ = split.panels;
}

Tile Tiling::operator[](int64_t i) const {
  const int64_t row = i / panels_, panel = i % panels_;
  Tile tile;
  tile.row_begin = granules_ * row / rows_ * work_.row_granule;
  tile.row_end = std::min(work_.rows, granules_ * (row + 1) / rows_ * work_.row_granule);
  tile.panel_begin = work_.panels * panel / panels_;
  tile.panel_end = work_.panels * (panel + 1) / panels_;
  return tile;
}

void for_each_tile(const Work& work, int threads, const std::function<void(const Tile&)>& body) {
  const Tiling tiles(work, threads);
  auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) body(tiles[i]);
  };
  if (threads <= 1 || tiles.size() <= 1)
    run(0, tiles.size());
  else
    parallel_for(0, tiles.size(), 1, run);
}

}  // namespace ik::cpu
