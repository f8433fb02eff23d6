// The pools of programs as operators.
#pragma once
#include <algorithm>

#include "common/parallel.h"
#include "common/pool_shape.h"
#include "cpu/run_program_table.h"

namespace ik::cpu {

inline PoolTask pool_task(const PoolShape& s, const NhwcInput& x, const NhwcOutput& y) {
  PoolTask task{};
  task.geometry = {s.N, s.C, s.H, s.W, s.C, s.R, s.S, s.stride_h, s.stride_w, s.pad_h, s.pad_w, 1, 1, s.P(), s.Q()};
  task.x = x;
  task.epilogue.y = y;
  return task;
}

// Rows that make waking a thread worthwhile.
inline int64_t rows_per_thread(int64_t elements_per_row) {
  constexpr int64_t kElements = 8192;
  return std::max<int64_t>(1, kElements / elements_per_row);
}

inline void run_pool(const PoolTask& task, void (*kernel)(const PoolTask&, int64_t, int64_t)) {
  const Geometry& g = task.geometry;
  const int64_t chunks = (g.C + kPoolChunk - 1) / kPoolChunk;
  parallel_for(0, g.N * g.P * chunks, rows_per_thread(g.Q * std::min(g.C, kPoolChunk)),
               [&](int64_t begin, int64_t end) { kernel(task, begin, end); });
}

}  // namespace ik::cpu
