// The packed depthwise weight of a separable convolution.
#pragma once
#include "cpu/gemm.h"
#include "cpu/pack_columns.h"

namespace ik::cpu::IK_ISA {

// [channel vector][R * S][kLanes]
template <typename T>
struct DepthwiseWeight {
  using A = Accum<T>;
  static constexpr int64_t kLanes = Vec<A>::kLanes;

  static size_t bytes(const Geometry& g) { return static_cast<size_t>(round_up(g.C, kLanes) * g.R * g.S) * sizeof(A); }
  static void pack(const Geometry& g, const WeightView& w, void* packed) {
    A* out = static_cast<A*>(packed);
    for (int64_t c = 0; c < round_up(g.C, kLanes); c += kLanes)
      for (int64_t r = 0; r < g.R; r++)
        for (int64_t s = 0; s < g.S; s++)
          for (int64_t i = 0; i < kLanes; i++)
            *out++ = c + i < g.C ? to_accum(read_weight<T>(w, c + i, 0, r, s)) : A(0);
  }
};

}  // namespace ik::cpu::IK_ISA
