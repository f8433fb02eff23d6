// launch.h on a GPU.
#pragma once
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

namespace ik::cuda {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // the next launch must not report this error again
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

constexpr size_t kSharedWithoutOptIn = 48 * 1024;

template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                   LaunchOptions options, const Context& context, Arguments&&... arguments) {
  if (shared > kSharedWithoutOptIn) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared)),
               name);
  }
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (options.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(options.cluster);
    attributes[count].val.clusterDim.y = 1;
    attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (options.overlapped) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count].val.programmaticStreamSerializationAllowed = 1;
    ++count;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(context.stream);
  config.attrs = attributes;
  config.numAttrs = count;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

inline int count_resident_clusters(const void* kernel, int cluster, dim3 block, size_t shared) {
  constexpr const char* kName = "cudaOccupancyMaxActiveClusters";
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
             kName);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(cluster));
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  check_cuda(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), kName);
  return clusters;
}

// Clusters that the current device can hold at once, asked once: a persistent kernel launches no more.
template <typename... Parameters>
int resident_clusters(void (*kernel)(Parameters...), int cluster, dim3 block, size_t shared, const Context&) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int>, int> known;
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  const void* const address = reinterpret_cast<const void*>(kernel);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, missing] = known.try_emplace({address, cluster, device}, 0);
  if (missing) entry->second = count_resident_clusters(address, cluster, block, shared);
  return entry->second;
}

inline CUtensorMapDataType tensor_map_type(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::kFloat32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT64;
  }
}

// libcuda is not linked: a machine without a driver must still load the library.
template <typename Function>
Function driver_function(const char* name) {
  void* symbol = nullptr;
  cudaDriverEntryPointQueryResult found;
  constexpr unsigned kFirstVersion = 12000;
  check_cuda(cudaGetDriverEntryPointByVersion(name, &symbol, kFirstVersion, cudaEnableDefault, &found), name);
  if (found != cudaDriverEntryPointSuccess) throw std::runtime_error(std::string("this CUDA driver has no ") + name);
  return reinterpret_cast<Function>(symbol);
}

inline void check_encoded(CUresult status, const char* what) {
  if (status == CUDA_SUCCESS) return;
  throw std::runtime_error(std::string(what) + ": error " + std::to_string(static_cast<int>(status)));
}

inline CUtensorMapSwizzle tensor_map_swizzle(Swizzle swizzle) {
  constexpr CUtensorMapSwizzle kSwizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B,
                                              CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B};
  return kSwizzles[static_cast<int>(swizzle)];
}

inline int64_t tensor_map_element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

inline TensorMap make_tensor_map(const TensorMapShape& shape) {
  constexpr int kMaxRank = 5;
  constexpr const char* kName = "cuTensorMapEncodeTiled";
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeTiled)>(kName);
  const int rank = static_cast<int>(shape.sizes.size());
  cuuint64_t sizes[kMaxRank];
  cuuint64_t strides[kMaxRank];
  cuuint32_t box[kMaxRank];
  cuuint32_t steps[kMaxRank];
  for (int i = 0; i < rank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(shape.sizes.begin()[i]);
    if (i > 0) {
      strides[i - 1] = static_cast<cuuint64_t>(shape.strides.begin()[i - 1] * tensor_map_element_size(shape.dtype));
    }
    box[i] = static_cast<cuuint32_t>(shape.box.begin()[i]);
    steps[i] = shape.steps.size() ? static_cast<cuuint32_t>(shape.steps.begin()[i]) : 1;
  }
  TensorMap map;
  check_encoded(encode(&map, tensor_map_type(shape.dtype), static_cast<cuuint32_t>(rank), const_cast<void*>(shape.base),
                       sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, tensor_map_swizzle(shape.swizzle),
                       CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
                kName);
  return map;
}

inline TensorMap make_im2col_map(const Im2colMapShape& given) {
  constexpr int kRank = 4;
  constexpr const char* kName = "cuTensorMapEncodeIm2col";
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeIm2col)>(kName);
  const ConvShape& shape = given.shape;
  const int64_t bytes = tensor_map_element_size(given.dtype);
  const cuuint64_t sizes[kRank] = {static_cast<cuuint64_t>(shape.C), static_cast<cuuint64_t>(shape.W),
                                   static_cast<cuuint64_t>(shape.H), static_cast<cuuint64_t>(shape.N)};
  const cuuint64_t strides[kRank - 1] = {static_cast<cuuint64_t>(given.x.stride_w * bytes),
                                         static_cast<cuuint64_t>(given.x.stride_h * bytes),
                                         static_cast<cuuint64_t>(given.x.stride_n * bytes)};
  const int lower[2] = {static_cast<int>(-shape.pad_w), static_cast<int>(-shape.pad_h)};
  const int upper[2] = {static_cast<int>(shape.pad_w - shape.dilation_w * (shape.S - 1)),
                        static_cast<int>(shape.pad_h - shape.dilation_h * (shape.R - 1))};
  const cuuint32_t steps[kRank] = {1, static_cast<cuuint32_t>(shape.stride_w), static_cast<cuuint32_t>(shape.stride_h),
                                   1};
  TensorMap map;
  check_encoded(encode(&map, tensor_map_type(given.dtype), kRank, const_cast<void*>(given.x.data), sizes, strides,
                       lower, upper, static_cast<cuuint32_t>(given.channels), static_cast<cuuint32_t>(given.pixels),
                       steps, CU_TENSOR_MAP_INTERLEAVE_NONE, tensor_map_swizzle(given.swizzle),
                       CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
                kName);
  return map;
}

}  // namespace ik::cuda
