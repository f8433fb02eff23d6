// What the launchers need to know of a device, through the CUDA runtime that is linked into this library.
#pragma once

namespace ik::cuda {

struct DeviceProperties {
  int sm;  // compute capability: 80, 86, 89, 90, ...
  int multiprocessors;
};

// Cached after the first call; throws std::runtime_error with CUDA's reason.
DeviceProperties device_properties(int device);
// This library's runtime follows PyTorch's, which has a copy of its own.
void set_device(int device);

}  // namespace ik::cuda
