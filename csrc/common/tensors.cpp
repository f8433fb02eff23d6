#include "common/tensors.h"

#include <sstream>

#include "common/counters.h"
#include "common/device.h"

namespace ik {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

namespace {

const char* scalar_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    default:
      return "another dtype";
  }
}

}  // namespace

DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, float64, bfloat16 or float16, got ", describe(tensor));
  }
}

std::string describe(const Tensor& tensor) {
  std::ostringstream out;
  out << scalar_name(tensor.scalar_type()) << " [";
  for (int64_t i = 0; i < tensor.dim(); ++i) out << (i ? ", " : "") << tensor.size(i);
  out << "]";
  return out.str();
}

bool suggests_channels_last(const Tensor& x) {
  // Strides must grow in the order C, W, H, N; ties between C and N mean contiguous (N1HW and NC11 are ambiguous).
  int64_t smallest = 0;
  if (x.dim() != 4 || x.stride(1) == 0) return false;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) == 0 || x.stride(d) < smallest) return false;
    if (d == 0 && smallest == x.stride(1)) return false;
    smallest = x.stride(d) * (x.size(d) > 1 ? x.size(d) : 1);
  }
  return true;
}

Tensor empty_activations(const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W, bool channels_last) {
  return empty_activations(like, N, C, H, W, channels_last, like.scalar_type());
}

Tensor empty_activations(const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W, bool channels_last,
                         ScalarType dtype) {
  return Device::empty(like, {N, C, H, W}, dtype,
                       channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor empty_on(const Tensor& neighbour, std::vector<int64_t> sizes, ScalarType dtype) {
  return Device::empty(neighbour, sizes, dtype, MemoryFormat::Contiguous);
}

Tensor empty_cpu(std::vector<int64_t> sizes, ScalarType dtype) { return torch::stable::empty(sizes, dtype); }

Tensor with_adjacent_channels(const Tensor& x) {
  if (x.size(1) == 1 || x.stride(1) == 1) return x;
  count_kernel("layout.to_channels_last");
  return torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
}

Tensor in_memory_format(Tensor y, bool channels_last) {
  // The two formats coincide in memory when one of C and H x W is 1, but their strides still differ.
  if (channels_last) return y;
  if (y.size(1) > 1 && y.size(2) * y.size(3) > 1) count_kernel("layout.to_contiguous");
  return torch::stable::contiguous(y, MemoryFormat::Contiguous);
}

NhwcInput input_view(const Tensor& x) { return {x.const_data_ptr(), x.stride(0), x.stride(2), x.stride(3)}; }

NhwcInput input_view(const OptionalTensor& x) { return x ? input_view(*x) : NhwcInput{}; }

NhwcOutput output_view(const Tensor& y) { return {y.mutable_data_ptr(), y.stride(0), y.stride(2), y.stride(3)}; }

WeightView weight_view(const Tensor& weight) {
  return {weight.const_data_ptr(), weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
}

WeightOutput weight_output(const Tensor& weight) {
  return {weight.mutable_data_ptr(), weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
}

ScalarType accumulation_type(DType dtype) { return dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float; }

bool is_beside(const Tensor& tensor, const Tensor& x) {
  return Device::holds(tensor) && (tensor.is_cpu() || tensor.get_device_index() == x.get_device_index());
}

void check_channel_vector(const Tensor& vector, int64_t length, const char* name) {
  STD_TORCH_CHECK(vector.dim() == 1 && vector.size(0) == length, name, ": expected [", length, "], got ",
                  describe(vector));
  STD_TORCH_CHECK(Device::holds(vector), name, ": expected a ", Device::name(), " tensor");
}

OptionalTensor channel_vector(const OptionalTensor& vector, int64_t length, DType dtype, const char* name) {
  if (!vector) return std::nullopt;
  check_channel_vector(*vector, length, name);
  dtype_of(*vector, name);
  const ScalarType wanted = accumulation_type(dtype);
  const Tensor same = vector->scalar_type() == wanted ? *vector : torch::stable::to(*vector, wanted);
  return same.is_contiguous() ? same : torch::stable::contiguous(same);
}

const void* data_or_null(const OptionalTensor& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

}  // namespace ik
