#include <stdexcept>
#include <string>

#include "host_cuda/runtime.h"
#include "host_cuda/swizzle.h"

namespace ik::host_cuda {
namespace {

void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error("tensor map: " + what);
}

}  // namespace

// What the driver refuses when it encodes a map.
void validate(const TensorMap& map) {
  constexpr int kMaxRank = 5;
  constexpr int64_t kMaxSize = int64_t{1} << 32, kMaxStride = int64_t{1} << 40;
  constexpr int kMaxBox = 256, kMaxStep = 8, kUnit = 16;
  require(map.rank >= 1 && map.rank <= kMaxRank, "rank " + std::to_string(map.rank));
  require(map.base % kUnit == 0, "the tensor is not 16-byte aligned");
  for (int i = 0; i < map.rank; ++i) {
    const std::string dimension = " of dimension " + std::to_string(i);
    require(map.size[i] > 0 && map.size[i] <= kMaxSize, "size " + std::to_string(map.size[i]) + dimension);
    require(map.box[i] > 0 && map.box[i] <= kMaxBox, "box " + std::to_string(map.box[i]) + dimension);
    require(map.step[i] > 0 && map.step[i] <= kMaxStep, "step " + std::to_string(map.step[i]) + dimension);
    const bool stride_fits = map.stride[i] % kUnit == 0 && map.stride[i] > 0 && map.stride[i] < kMaxStride;
    require(i == 0 || stride_fits, "stride " + std::to_string(map.stride[i]) + " bytes" + dimension);
  }
  const int row = map.box[0] * map.element_size;
  require(row % kUnit == 0, "rows of " + std::to_string(row) + " bytes");
  const bool fits = map.swizzle == kSwizzleNone || row <= static_cast<int>(swizzle_span(map.swizzle));
  require(fits, "rows of " + std::to_string(row) + " bytes are longer than the swizzle");
}

}  // namespace ik::host_cuda
