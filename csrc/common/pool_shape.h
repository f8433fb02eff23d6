// Geometry of a 2-d pool: input [N, C, H, W], window [R, S], output [N, C, P, Q].
#pragma once
#include <cstdint>
#include <vector>

namespace ik {

struct PoolShape {
  int64_t N, C, H, W;
  int64_t R, S;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;  // at most half of the window: every window has a pixel

  int64_t P() const { return (H + 2 * pad_h - R) / stride_h + 1; }
  int64_t Q() const { return (W + 2 * pad_w - S) / stride_w + 1; }
};

// Every parameter is checked; the output has at least one pixel.
PoolShape pool_shape(int64_t N, int64_t C, int64_t H, int64_t W, const std::vector<int64_t>& kernel,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding);

}  // namespace ik
