// Integer helpers of the training kernels' planning, and views whose rows follow each other without a gap.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/types.h"

namespace ik::cpu::training {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t divide_down(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
inline int64_t remainder(int64_t a, int64_t b) { return a - divide_down(a, b) * b; }

template <typename Pointer>
bool is_one_row(const NhwcView<Pointer>& view, int64_t P, int64_t Q) {
  return view.data == nullptr || (view.stride_h == Q * view.stride_w && view.stride_n == P * view.stride_h);
}

}  // namespace ik::cpu::training
