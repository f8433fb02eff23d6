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

struct Shapes {
  ConvShape first, second;
};

// Windows are [K, C, R, S]. The intermediate only lends its sizes here; it never exists as a tensor.
Shapes checked_shapes(const Tensor& x, const std::vector<int64_t>& window1, const std::vector<int64_t>& window2,
                      const Pair& stride1, const Pair& stride2, const Pair& padding1, const Pair& padding2) {
  const Pair no_dilation{1, 1};
  const ConvShape first = conv_shape(x, window1[0], window1[2], window1[3], stride1, padding1, no_dilation);
  const ConvShape second{first.N,    first.K,    first.P(),   first.Q(),   window2[0], window2[2], window2[3],
                         stride2[0], stride2[1], padding2[0], padding2[1], 1,          1};
  STD_TORCH_CHECK(second.P() >= 1 && second.Q() >= 1,
                  "weight2: expected a window no larger than the padded intermediate [", second.H, ", ", second.W,
                  "], got [", second.R, ", ", second.S, "]");
  return {first, second};
}

// Both convolutions into a new channels-last tensor.
Tensor forward(const Device& device, const Shapes& shapes, const Tensor& x, const Tensor& packed1,
               const ScaleShift& bn1, Activation mid_activation, const Tensor& packed2, const ScaleShift& bn2,
               Activation activation) {
  const ConvShape& second = shapes.second;
  Tensor y = empty_activations(x, second.N, second.K, second.P(), second.Q(), true);
  if (second.N == 0) return y;
  const Tensor input = with_adjacent_channels(x);
  device.asymmetric_pair_forward({shapes.first, second, dtype_of(x, "x"), input_view(input), packed1.const_data_ptr(),
                                  data_or_null(bn1.scale), data_or_null(bn1.shift), mid_activation,
                                  packed2.const_data_ptr(), data_or_null(bn2.scale), data_or_null(bn2.shift),
                                  activation, output_view(y)});
  return y;
}

std::vector<int64_t> sizes_of(const Tensor& weight) {
  return {weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
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
  const Shapes shapes = checked_shapes(x, sizes_of(weight1), sizes_of(weight2), stride1, stride2, padding1, padding2);
  const DType dtype = dtype_of(x, "x");
  const Activation act1 = activation_code(mid_activation), act2 = activation_code(activation);
  const Device device(x);
  const ScaleShift bn1 =
      device.fold_batch_norm(dtype, shapes.first.K, bn_weight1, bn_bias1, running_mean1, running_var1, bias1, eps);
  const ScaleShift bn2 =
      device.fold_batch_norm(dtype, shapes.second.K, bn_weight2, bn_bias2, running_mean2, running_var2, bias2, eps);
  const Tensor y = forward(device, shapes, x, pack(device, shapes.first, weight1), bn1, act1,
                           pack(device, shapes.second, weight2), bn2, act2);
  return in_memory_format(y, suggests_channels_last(x));
}

// Weights packed by conv2d_bn_act_pack, weight_shapes are [K, C, R, S]; scales and shifts are in the accumulation type;
// the output is channels-last.
Tensor asymmetric_pair_prepacked(const Tensor& x, const Tensor& packed1, const OptionalTensor& scale1,
                                 const OptionalTensor& shift1, std::vector<int64_t> weight_shape1,
                                 const Tensor& packed2, const OptionalTensor& scale2, const OptionalTensor& shift2,
                                 std::vector<int64_t> weight_shape2, Pair stride1, Pair stride2, Pair padding1,
                                 Pair padding2, std::string mid_activation, std::string activation) {
  check_activations(x, "x");
  STD_TORCH_CHECK(weight_shape1.size() == 4 && weight_shape1[1] == x.size(1), "x: expected ", weight_shape1.at(1),
                  " channels, got ", describe(x));
  STD_TORCH_CHECK(weight_shape2.size() == 4 && weight_shape2[1] == weight_shape1[0], "weight_shape2: expected ",
                  weight_shape1[0], " input channels, got ", weight_shape2.at(1));
  const Shapes shapes = checked_shapes(x, weight_shape1, weight_shape2, stride1, stride2, padding1, padding2);
  check_accumulation_vector(scale1, x, shapes.first.K, "scale1");
  check_accumulation_vector(shift1, x, shapes.first.K, "shift1");
  check_accumulation_vector(scale2, x, shapes.second.K, "scale2");
  check_accumulation_vector(shift2, x, shapes.second.K, "shift2");
  const DType dtype = dtype_of(x, "x");
  const Activation act1 = activation_code(mid_activation), act2 = activation_code(activation);
  const Device device(x);
  check_packed(packed1, x, device.conv2d_packed_bytes(shapes.first, dtype), "packed1");
  check_packed(packed2, x, device.conv2d_packed_bytes(shapes.second, dtype), "packed2");
  return forward(device, shapes, x, packed1, {scale1, shift1}, act1, packed2, {scale2, shift2}, act2);
}

void register_asymmetric_pair(Library& m) {
  m.impl("asymmetric_pair", TORCH_BOX(&asymmetric_pair));
  m.impl("asymmetric_pair_prepacked", TORCH_BOX(&asymmetric_pair_prepacked));
}

}  // namespace ik
