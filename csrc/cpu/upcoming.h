// What the next tile will read, fetched while this one is multiplied: the product leaves memory idle.
#pragma once
#include "cpu/integers.h"
#include "cpu/kernel_table.h"
#include "cpu/vec.h"

namespace ik::cpu::IK_ISA {

class Upcoming {
 public:
  Upcoming() = default;
  // After a tile of output rows (first_n, first_p) to (last_n, last_p): as much of x again as that tile reads.
  template <typename T>
  static Upcoming after(const Geometry& g, const NhwcInput& x, int64_t first_n, int64_t first_p, int64_t last_n,
                        int64_t last_p) {
    const auto line = [&](int64_t n, int64_t h) {
      const int64_t inside = h < 0 ? 0 : h > g.H ? g.H : h;
      return (n * x.stride_n + inside * x.stride_h) * static_cast<int64_t>(sizeof(T));
    };
    const int64_t begin = line(first_n, first_p * g.stride_h - g.pad_h);
    const int64_t end = line(last_n, last_p * g.stride_h - g.pad_h + (g.R - 1) * g.dilation_h + 1);
    const int64_t rest = line(g.N, 0) - end, bytes = rest < end - begin ? rest : end - begin;
    Upcoming upcoming;
    upcoming.begin_ = static_cast<const char*>(x.data) + end;
    upcoming.lines_ = bytes > 0 ? bytes / kCacheLine : 0;
    return upcoming;
  }
  // Part `index` of `count`.
  void fetch(int64_t index, int64_t count) const {
    for (int64_t i = lines_ * index / count; i < lines_ * (index + 1) / count; i++)
      __builtin_prefetch(begin_ + i * kCacheLine, 0, 2);
  }

 private:
  const char* begin_ = nullptr;
  int64_t lines_ = 0;
};

}  // namespace ik::cpu::IK_ISA
