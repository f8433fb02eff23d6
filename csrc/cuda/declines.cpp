#include "cuda/declines.h"

#include "asymmetric_pair.h"
#include "common/tensors.h"
#include "conv2d_bn_act.h"
#include "cuda/context.h"
#include "separable_conv2d.h"

namespace ik::cuda {

namespace {

constexpr size_t kShapeNumbers = 13;

DType dtype_from_name(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "float64") return DType::kFloat64;
  if (name == "bfloat16") return DType::kBFloat16;
  STD_TORCH_CHECK(name == "float16", "dtype: expected float32, float64, bfloat16 or float16, got ", name);
  return DType::kFloat16;
}

ConvShape shape_from(const int64_t* n) {
  return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12]};
}

// Strides of a dense channels-last tensor: questions are about shapes, not about addresses.
template <typename View>
View dense(int64_t H, int64_t W, int64_t C) {
  return {nullptr, H * W * C, W * C, C};
}

Conv2dForward conv2d_call(const ConvShape& shape, DType dtype) {
  Conv2dForward args{};
  args.shape = shape;
  args.dtype = dtype;
  args.x = dense<NhwcInput>(shape.H, shape.W, shape.C);
  args.y = dense<NhwcOutput>(shape.P(), shape.Q(), shape.K);
  return args;
}

SeparableForward separable_call(const ConvShape& shape, DType dtype) {
  SeparableForward args{};
  args.shape = shape;
  args.dtype = dtype;
  args.x = dense<NhwcInput>(shape.H, shape.W, shape.C);
  args.y = dense<NhwcOutput>(shape.P(), shape.Q(), shape.K);
  return args;
}

PairForward pair_call(const ConvShape& first, const ConvShape& second, DType dtype) {
  PairForward args{};
  args.first = first;
  args.second = second;
  args.dtype = dtype;
  args.x = dense<NhwcInput>(first.H, first.W, first.C);
  args.y = dense<NhwcOutput>(second.P(), second.Q(), second.K);
  return args;
}

const char* reason(const std::string& op, DType dtype, const std::vector<int64_t>& shapes, const Context& context) {
  if (dtype == DType::kFloat64) return "float64 runs on the reference backend";
  const size_t expected = op == "asymmetric_pair" ? 2 * kShapeNumbers : kShapeNumbers;
  STD_TORCH_CHECK(shapes.size() == expected, "shapes: expected ", expected, " numbers, got ", shapes.size());
  const ConvShape shape = shape_from(shapes.data());
  if (op == "conv2d_bn_act") return conv2d_unsupported(conv2d_call(shape, dtype), context);
  if (op == "separable_conv2d") return separable_unsupported(separable_call(shape, dtype), context);
  STD_TORCH_CHECK(op == "asymmetric_pair", "no CUDA kernels of ", op);
  return asymmetric_pair_unsupported(pair_call(shape, shape_from(shapes.data() + kShapeNumbers), dtype), context);
}

}  // namespace

std::string declines(std::string op, std::string dtype, std::vector<int64_t> shapes, int64_t sm) {
  constexpr int kSomeMultiprocessors = 100;  // no kernel's limits depend on them
  const Context context{nullptr, static_cast<int>(sm), kSomeMultiprocessors, false};
  const char* text = reason(op, dtype_from_name(dtype), shapes, context);
  return text ? text : "";
}

}  // namespace ik::cuda
