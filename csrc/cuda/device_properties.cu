#include <cuda_runtime.h>

#include <array>
#include <atomic>

#include "cuda/device_properties.h"
#include "cuda/launch.h"

namespace ik::cuda {

namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

DeviceProperties query(int device) {
  constexpr int kMajorDigit = 10;
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  return {major * kMajorDigit + minor, attribute(cudaDevAttrMultiProcessorCount, device)};
}

}  // namespace

DeviceProperties device_properties(int device) {
  constexpr int kCachedDevices = 64;
  static std::array<std::atomic<DeviceProperties>, kCachedDevices> cache;  // sm 0: not asked yet
  if (device < 0 || device >= kCachedDevices) return query(device);
  DeviceProperties found = cache[device].load();
  if (found.sm == 0) {
    found = query(device);
    cache[device].store(found);
  }
  return found;
}

void set_device(int device) { check_cuda(cudaSetDevice(device), "cudaSetDevice"); }

}  // namespace ik::cuda
