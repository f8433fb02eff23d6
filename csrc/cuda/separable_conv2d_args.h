// Kernel arguments that both sm_80 kernels derive from a SeparableForward in the same way.
#pragma once
#include "cuda/epilogue.cuh"
#include "cuda/pixels.cuh"
#include "separable_conv2d.h"

namespace ik::cuda::separable {

inline bool is_half(DType dtype) { return dtype != DType::kFloat32; }

// Every vector of 16 bytes of x is one aligned access.
inline bool vectors_are_whole(const SeparableForward& args) {
  const int64_t vector = is_half(args.dtype) ? 8 : 4;
  return args.shape.C % vector == 0 && (is_half(args.dtype) ? is_aligned<bf16>(args.x) : is_aligned<float>(args.x));
}

template <typename T>
Epilogue epilogue_of_type(const SeparableForward& args) {
  const bool whole = args.shape.K % kBlockColumns == 0;
  return {static_cast<const float*>(args.scale),
          static_cast<const float*>(args.shift),
          args.residual.data,
          args.y.data,
          static_cast<int>(args.shape.K),
          args.activation,
          whole && is_aligned<T>(args.residual),
          whole && is_aligned<T>(args.y)};
}

inline Epilogue epilogue_of(const SeparableForward& args) {
  return is_half(args.dtype) ? epilogue_of_type<bf16>(args) : epilogue_of_type<float>(args);
}

}  // namespace ik::cuda::separable
