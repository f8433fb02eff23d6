#include "common/pool_shape.h"

#include "common/checks.h"

namespace ik {

PoolShape pool_shape(int64_t N, int64_t C, int64_t H, int64_t W, const Pair& kernel, const Pair& stride,
                     const Pair& padding) {
  check_pair(kernel, 1, "kernel");
  check_pair(stride, 1, "stride");
  check_pair(padding, 0, "padding");
  constexpr int64_t kBeyond = int64_t{1} << 31;  // products of two sizes are whole below it
  for (const Pair* pair : {&kernel, &stride, &padding}) {
    STD_TORCH_CHECK((*pair)[0] < kBeyond && (*pair)[1] < kBeyond,
                    "expected kernel, stride and padding below 2^31, got ", describe(kernel), ", ", describe(stride),
                    " and ", describe(padding));
  }
  STD_TORCH_CHECK(C > 0 && H > 0 && W > 0, "expected C, H and W of at least 1, got ", C, ", ", H, ", ", W);
  STD_TORCH_CHECK(padding[0] <= kernel[0] / 2 && padding[1] <= kernel[1] / 2,
                  "padding: expected 0 to half of the window ", describe(kernel), ", got ", describe(padding));
  STD_TORCH_CHECK(kernel[0] <= H + 2 * padding[0] && kernel[1] <= W + 2 * padding[1],
                  "expected a window no larger than the padded input, got a window of ", kernel[0], " x ", kernel[1],
                  " over ", H + 2 * padding[0], " x ", W + 2 * padding[1]);
  return {N, C, H, W, kernel[0], kernel[1], stride[0], stride[1], padding[0], padding[1]};
}

}  // namespace ik
