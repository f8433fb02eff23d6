#include "avg_pool2d.h"

#include <torch/csrc/stable/library.h>

#include "common/checks.h"

namespace ik {

// y [N, C, P, Q], channels-last.
Tensor avg_pool2d(const Tensor& x, Pair kernel, Pair stride, Pair padding, bool count_include_pad) {
  check_activations(x, "x");
  const PoolShape shape = pool_shape(x.size(0), x.size(1), x.size(2), x.size(3), kernel, stride, padding);
  Tensor y = empty_activations(x, shape.N, shape.C, shape.P(), shape.Q(), true);
  if (shape.N == 0) return y;
  const Tensor input = with_adjacent_channels(x);
  cpu::avg_pool2d(shape, dtype_of(x, "x"), input_view(input), output_view(y), count_include_pad);
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(inception_kernels, CPU, m) { m.impl("avg_pool2d", TORCH_BOX(&avg_pool2d)); }

}  // namespace ik
