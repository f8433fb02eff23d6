// From a runtime dtype to the kernels' storage type.
#pragma once
#include <stdexcept>

#include "common/types.h"
#include "cuda/primitives.cuh"

namespace ik::cuda {

template <typename T>
struct StorageType {
  using Type = T;
};

template <typename F>
void with_storage_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kBFloat16:
      return f(StorageType<bf16>{});
    case DType::kFloat16:
      return f(StorageType<fp16>{});
    case DType::kFloat32:
      return f(StorageType<float>{});
    case DType::kFloat64:
      break;
  }
  throw std::invalid_argument("float64 runs on the reference backend");
}

inline const char* name_by_dtype(DType dtype, const char* bf16_name, const char* f16_name, const char* f32_name) {
  return dtype == DType::kBFloat16 ? bf16_name : dtype == DType::kFloat16 ? f16_name : f32_name;
}

}  // namespace ik::cuda
