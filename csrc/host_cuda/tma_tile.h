// What one TMA copy moves: rows of the tensor, or of the pixels under a convolution's tap.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "host_cuda/report.h"
#include "host_cuda/runtime.h"

namespace ik::host_cuda {

struct TmaRow {
  char* global = nullptr;     // the first element that exists
  int64_t skipped_bytes = 0;  // in front of it
  int64_t valid_bytes = 0;    // the rest is zero, or not stored
};

struct TmaTile {
  uint32_t shared;
  int swizzle;
  int64_t row_bytes;
  std::vector<TmaRow> rows;

  int64_t bytes() const { return row_bytes * static_cast<int64_t>(rows.size()); }
  void load() const;
  void store() const;

 private:
  char* shared_chunk(int64_t offset) const;
};

TmaTile box_tile(const TensorMap& map, uint32_t shared, std::initializer_list<int> x, const Site& site);
TmaTile im2col_tile(const TensorMap& map, uint32_t shared, std::initializer_list<int> x,
                    std::initializer_list<int> offset, const Site& site);

}  // namespace ik::host_cuda
