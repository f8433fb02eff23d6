#include "host_cuda/tma_tile.h"

#include <algorithm>

#include "host_cuda/memory.h"
#include "host_cuda/swizzle.h"

namespace ik::host_cuda {
namespace {

constexpr size_t kChunk = 16;  // bytes that a swizzle keeps together

TmaTile empty_tile(const TensorMap& map, uint32_t shared, const Site& site) {
  constexpr size_t kSharedAlignment = 128;
  check_alignment(shared_pointer(shared), kSharedAlignment, "TMA in shared memory", site);
  return {shared, map.swizzle, int64_t{map.box[0]} * map.element_size, {}};
}

// The part of [first, first + box) along the contiguous dimension that exists; `address` is that of element 0.
TmaRow clipped_row(const TensorMap& map, int first, uint64_t address) {
  const int64_t begin = std::clamp<int64_t>(first, 0, map.size[0]);
  const int64_t end = std::clamp<int64_t>(int64_t{first} + map.box[0], 0, map.size[0]);
  if (begin >= end) return {};
  return {reinterpret_cast<char*>(address + static_cast<uint64_t>(begin * map.element_size)),
          (begin - first) * map.element_size, (end - begin) * map.element_size};
}

bool exists(const TensorMap& map, int dimension, int64_t at) { return at >= 0 && at < map.size[dimension]; }

int count_along(const TensorMap& map, int dimension) {
  return (map.box[dimension] + map.step[dimension] - 1) / map.step[dimension];
}

TmaRow box_row(const TensorMap& map, const int* x, int index) {
  uint64_t address = map.base;
  for (int i = 1; i < map.rank; ++i) {
    const int64_t at = x[i] + int64_t{index % count_along(map, i)} * map.step[i];
    index /= count_along(map, i);
    if (!exists(map, i, at)) return {};
    address += static_cast<uint64_t>(at * map.stride[i]);
  }
  return clipped_row(map, x[0], address);
}

// Walks the base pixels along w, then h, then n of the box whose corners the map knows.
class BasePixel {
 public:
  BasePixel(const TensorMap& map, int w, int h, int n, const Site& site) : map_(map), at_{w, h}, n_(n) {
    for (int i = 0; i < 2; ++i) {
      last_[i] = static_cast<int>(map.size[i + 1]) - 1 + map.upper[i];
      if (at_[i] < map.lower[i] || at_[i] > last_[i]) report("TMA", site, "the first pixel is not one of the map's");
    }
  }

  TmaRow row_at(int c, const int* offset) const {
    const int64_t w = int64_t{at_[0]} + offset[0];
    const int64_t h = int64_t{at_[1]} + offset[1];
    if (!exists(map_, 1, w) || !exists(map_, 2, h) || !exists(map_, 3, n_)) return {};
    const int64_t distance = w * map_.stride[1] + h * map_.stride[2] + n_ * map_.stride[3];
    return clipped_row(map_, c, map_.base + static_cast<uint64_t>(distance));
  }

  void advance() {
    for (int i = 0; i < 2; ++i) {
      at_[i] += map_.step[i + 1];
      if (at_[i] <= last_[i]) return;
      at_[i] = map_.lower[i];
    }
    ++n_;
  }

 private:
  const TensorMap& map_;
  int at_[2];  // w, h
  int last_[2];
  int64_t n_;
};

}  // namespace

char* TmaTile::shared_chunk(int64_t offset) const {
  const uint32_t address = shared + static_cast<uint32_t>(offset);
  const uint32_t rank = static_cast<uint32_t>(rank_of(address));
  return static_cast<char*>(shared_pointer(rank << 24 | swizzled(within_block(address), swizzle)));
}

void TmaTile::load() const {
  std::vector<char> buffer(static_cast<size_t>(row_bytes));
  for (size_t i = 0; i < rows.size(); ++i) {
    const TmaRow& row = rows[i];
    std::fill(buffer.begin(), buffer.end(), 0);
    std::copy_n(row.global, row.valid_bytes, buffer.begin() + row.skipped_bytes);
    for (size_t at = 0; at < buffer.size(); at += kChunk) {
      memcpy(shared_chunk(static_cast<int64_t>(i) * row_bytes + static_cast<int64_t>(at)), buffer.data() + at, kChunk);
    }
  }
}

void TmaTile::store() const {
  std::vector<char> buffer(static_cast<size_t>(row_bytes));
  for (size_t i = 0; i < rows.size(); ++i) {
    const TmaRow& row = rows[i];
    for (size_t at = 0; at < buffer.size(); at += kChunk) {
      memcpy(buffer.data() + at, shared_chunk(static_cast<int64_t>(i) * row_bytes + static_cast<int64_t>(at)), kChunk);
    }
    std::copy_n(buffer.begin() + row.skipped_bytes, row.valid_bytes, row.global);
  }
}

TmaTile box_tile(const TensorMap& map, uint32_t shared, std::initializer_list<int> x, const Site& site) {
  TmaTile tile = empty_tile(map, shared, site);
  if (static_cast<int>(x.size()) != map.rank || map.pixels) {
    report_fatal("TMA", site, "%zu coordinates for a map of %d dimensions", x.size(), map.rank);
    return tile;
  }
  int rows = 1;
  for (int i = 1; i < map.rank; ++i) rows *= count_along(map, i);
  for (int i = 0; i < rows; ++i) tile.rows.push_back(box_row(map, x.begin(), i));
  return tile;
}

TmaTile im2col_tile(const TensorMap& map, uint32_t shared, std::initializer_list<int> x,
                    std::initializer_list<int> offset, const Site& site) {
  TmaTile tile = empty_tile(map, shared, site);
  constexpr int kMaxOffset = 255;
  for (const int o : offset) {
    if (o < 0 || o > kMaxOffset) report("TMA", site, "im2col offset %d", o);
  }
  const int* at = x.begin();
  BasePixel pixel(map, at[1], at[2], at[3], site);
  for (int i = 0; i < map.pixels; ++i) {
    tile.rows.push_back(pixel.row_at(at[0], offset.begin()));
    pixel.advance();
  }
  return tile;
}

}  // namespace ik::host_cuda
