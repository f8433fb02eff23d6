// Which tensors the copy engine can read: pixels that begin at multiples of 16 bytes.
#pragma once
#include <cstdint>

#include "common/types.h"

namespace ik::cuda {

constexpr int64_t kCopyBytes = 16;
constexpr int64_t kCopyElements = 8;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool is_copy_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kCopyBytes == 0; }

// The stride of a dimension of size 1 is never used, and may be anything: here it is what a dense tensor has.
template <typename View>
View with_plain_strides(View view, int64_t N, int64_t H, int64_t W, int64_t C) {
  if (W == 1) view.stride_w = H > 1 ? view.stride_h : N > 1 ? view.stride_n : C;
  if (H == 1) view.stride_h = W * view.stride_w;
  if (N == 1) view.stride_n = H * view.stride_h;
  return view;
}

template <typename View>
bool has_aligned_pixels(const View& view) {
  return is_copy_aligned(view.data) && view.stride_n % kCopyElements == 0 && view.stride_h % kCopyElements == 0 &&
         view.stride_w % kCopyElements == 0;
}

}  // namespace ik::cuda
