// The lines that the second window of a pair runs along, in pixels of the intermediate and of the output.
#pragma once
#include "asymmetric_pair.h"

namespace ik::cuda {

inline bool is_vertical(const ConvShape& second) { return second.S == 1 && second.stride_w == 1 && second.pad_w == 0; }
inline bool is_horizontal(const ConvShape& second) {
  return second.R == 1 && second.stride_h == 1 && second.pad_h == 0;
}

struct PairLines {
  bool vertical;
  int64_t of_image, length, out_length;
  int64_t taps, stride, pad, dilation;

  // is_vertical(second) || is_horizontal(second)
  explicit PairLines(const ConvShape& second)
      : vertical(is_vertical(second)),
        of_image(vertical ? second.W : second.H),
        length(vertical ? second.H : second.W),
        out_length(vertical ? second.P() : second.Q()),
        taps(vertical ? second.R : second.S),
        stride(vertical ? second.stride_h : second.stride_w),
        pad(vertical ? second.pad_h : second.pad_w),
        dilation(vertical ? second.dilation_h : second.dilation_w) {}
};

}  // namespace ik::cuda
