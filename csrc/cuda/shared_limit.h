// Bytes of shared memory that a block may have, static and dynamic together.
#pragma once
#include <cstdint>

namespace ik::cuda {

constexpr int64_t kSharedBytes90 = 232448;  // compute capability 9.0, 10.x
constexpr int64_t kSharedBytes80 = 166912;  // 8.0, 8.7
constexpr int64_t kSharedBytes86 = 101376;  // 8.6, 8.9, 12.x

constexpr int64_t shared_limit(int sm) {
  if (sm == 80 || sm == 87) return kSharedBytes80;
  return sm >= 90 && sm < 120 ? kSharedBytes90 : kSharedBytes86;
}

}  // namespace ik::cuda
