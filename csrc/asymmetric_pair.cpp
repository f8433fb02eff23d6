#include "asymmetric_pair.h"

#include "common/checks.h"
#include "common/device.h"
#include "operators.h"

namespace ik {

namespace {

Tensor pack(const Device& device, const ConvShape& shape, const Tensor& weight) {
  const DType dtype = dtype_of(weight, "weight");
  const auto bytes = static_cast<int64_t>(device.conv2d_packed_bytes(shape, dtype));
  Tensor packed = empty_on(weight, {bytes}, torch::headeronly::ScalarType::Byte);
  device.conv2d_pack(shape, dtype, weight_view(weight), packed.mutable_data_ptr());
  return packed;
}

}  // namespace

// Evaluation only: batch statistics of the first convolution need its whole output, so training is two operators.
Tensor asymmetric_pair(const Tensor& x, const Tensor& weight1, const OptionalTensor& bn_weight1,
                       const OptionalTensor& bn_bias1, const OptionalTensor& running_mean1,
                       const OptionalTensor& running_var1, const OptionalTensor& bias1, const Tensor& weight2,
                       const OptionalTensor& bn_weight2, const OptionalTensor& bn_bias2,
                       const OptionalTensor& running_mean2, const OptionalTensor& running_var2,
                       const OptionalTensor& bias2, Pair stride1, Pair stride2, Pair padding1, Pair padding2,
                       std::string mid_activation, std::string activation, double eps) {
  check_activations(x, "x");
  check_weight(weight1, x, x.size(1), "weight1");
  check_weight(weight2, x, weight1.size(0), "weight2");
  check_batch_norm(running_mean1, running_var1, bn_weight1, bn_bias1);
  check_batch_norm(running_mean2, running_var2, bn_weight2, bn_bias2);
  const Pair no_dilation{1, 1};
  const ConvShape first =
      conv_shape(x, weight1.size(0), weight1.size(2), weight1.size(3), stride1, padding1, no_dilation);
  // The intermediate only lends its sizes here; it never exists as a tensor.
  const ConvShape second{first.N,
                         first.K,
                         first.P(),
                         first.Q(),
                         weight2.size(0),
                         weight2.size(2),
                         weight2.size(3),
                         stride2[0],
                         stride2[1],
                         padding2[0],
                         padding2[1],
                         1,
                         1};
  STD_TORCH_CHECK(second.P() >= 1 && second.Q() >= 1,
                  "weight2: expected a window no larger than the padded intermediate [", second.H, ", ", second.W,
                  "], got ", describe(weight2));
  const DType dtype = dtype_of(x, "x");
  const Activation act1 = activation_code(mid_activation), act2 = activation_code(activation);
  const Device device(x);
  const ScaleShift bn1 =
      device.fold_batch_norm(dtype, first.K, bn_weight1, bn_bias1, running_mean1, running_var1, bias1, eps);
  const ScaleShift bn2 =
      device.fold_batch_norm(dtype, second.K, bn_weight2, bn_bias2, running_mean2, running_var2, bias2, eps);

  Tensor y = empty_activations(x, second.N, second.K, second.P(), second.Q(), true);
  if (first.N > 0) {
    const Tensor input = with_adjacent_channels(x), packed1 = pack(device, first, weight1),
                 packed2 = pack(device, second, weight2);
    device.asymmetric_pair_forward({first, second, dtype, input_view(input), packed1.const_data_ptr(),
                                    data_or_null(bn1.scale), data_or_null(bn1.shift), act1, packed2.const_data_ptr(),
                                    data_or_null(bn2.scale), data_or_null(bn2.shift), act2, output_view(y)});
  }
  return in_memory_format(y, suggests_channels_last(x));
}

void register_asymmetric_pair(Library& m) { m.impl("asymmetric_pair", TORCH_BOX(&asymmetric_pair)); }

}  // namespace ik
