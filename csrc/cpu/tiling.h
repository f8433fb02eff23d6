// How the rows (output pixels) and panels (groups of output channels) of one product are divided among threads.
#pragma once
#include <functional>

#include "cpu/kernel_table.h"

namespace ik::cpu {

Geometry geometry_of(const ConvShape& shape);
// The output rows [p_begin, p_end) of every image as a geometry of their own.
Geometry band_of(const Geometry& geometry, int64_t p_begin, int64_t p_end);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t panels_of(const KernelTable& table, int64_t K) { return ceil_div(K, table.panel_width); }

struct Work {
  int64_t rows;
  int64_t row_granule;
  int64_t tile_rows;  // at most so many per tile
  int64_t panels;
  double produce_cost;  // of one row, in units of one row times one panel
  double panel_cost;    // of one panel for every tile, in units of one granule of rows times one panel
};

Work conv_work(const KernelTable& table, const ConvKernels& kernels, const Geometry& geometry);
Work separable_work(const KernelTable& table, const SeparableKernels& kernels, const Geometry& geometry);

// The tiles that cover a work, in the order of their rows, so that equal shares of them are about equal work.
class Tiling {
 public:
  Tiling(const Work& work, int threads);

  int64_t size() const { return rows_ * panels_; }
  Tile operator[](int64_t i) const;

 private:
  Work work_;
  int64_t granules_, rows_, panels_;
};

// Calls body(tile) for tiles that cover the work, on all threads; row tiles of one thread only when threads == 1.
void for_each_tile(const Work& work, int threads, const std::function<void(const Tile&)>& body);

}  // namespace ik::cpu
