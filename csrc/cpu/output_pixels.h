// Output pixels in the order of a separable convolution's rows.
#pragma once
#include "cpu/kernel_table.h"
#include "cpu/vec.h"

namespace ik::cpu::IK_ISA {

struct Pixel {
  int64_t n, p, q;
};
inline Pixel pixel_of(const Geometry& g, int64_t row) { return {row / (g.P * g.Q), row / g.Q % g.P, row % g.Q}; }
inline void advance(const Geometry& g, Pixel* at) {
  if (++at->q < g.Q) return;
  at->q = 0;
  if (++at->p < g.P) return;
  at->p = 0;
  at->n++;
}

}  // namespace ik::cpu::IK_ISA
