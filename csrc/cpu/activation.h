// The five activations on vectors, with PyTorch's treatment of NaN.
#pragma once
#include <cmath>

#include "cpu/vec.h"

namespace ik::cpu::IK_ISA {

constexpr float kLargestExponent = 88.72283f;  // exp() of what is larger is infinite

// p and n with exp(x) = (p + 1) * 2^n; x limited to -126 < n <= 128, which nobody sees who adds or subtracts one.
inline void exp_parts(VecF x, VecF* p, VecF* n) {
  x = vmin(broadcast(kLargestExponent), vmax(broadcast(-86.9f), x));
  *n = round_nearest(x * broadcast(1.44269504088896341f));
  VecF r = fmadd(*n, broadcast(-0.693359375f), x);
  r = fmadd(*n, broadcast(2.12194440e-4f), r);
  VecF q = broadcast(1.9875691500e-4f);
  q = fmadd(q, r, broadcast(1.3981999507e-3f));
  q = fmadd(q, r, broadcast(8.3334519073e-3f));
  q = fmadd(q, r, broadcast(4.1665795894e-2f));
  q = fmadd(q, r, broadcast(1.6666665459e-1f));
  q = fmadd(q, r, broadcast(5.0000001201e-1f));
  *p = fmadd(q * r, r, r);
}
inline VecF exp(VecF x) {
  VecF p, n;
  exp_parts(x, &p, &n);
  const VecF half = power_of_two(n - broadcast(1.0f));  // 2^128 is no float
  return where_greater(x, broadcast(kLargestExponent), broadcast(HUGE_VALF), fmadd(half, p, half) * broadcast(2.0f));
}
// Of x <= 0: what is larger than 88 does not come back.
inline VecF expm1(VecF x) {
  VecF p, n;
  exp_parts(x, &p, &n);
  const VecF s = power_of_two(n);
  return fmadd(s, p, s - broadcast(1.0f));
}
template <typename Function>
inline VecD each_lane(VecD x, Function function) {
  double lanes[VecD::kLanes];
  store(lanes, x);
  for (double& lane : lanes) lane = function(lane);
  return load(lanes);
}
inline VecD exp(VecD x) {
  return each_lane(x, [](double lane) { return ::exp(lane); });
}
inline VecD expm1(VecD x) {
  return each_lane(x, [](double lane) { return ::expm1(lane); });
}

template <typename A>
inline Vec<A> relu(Vec<A> x) {
  return vmax(broadcast(A(0)), x);
}
template <typename A>
inline Vec<A> relu6(Vec<A> x) {
  return vmin(broadcast(A(6)), relu(x));
}
template <typename A>
inline Vec<A> elu(Vec<A> x) {
  return where_greater(x, broadcast(A(0)), x, expm1(x));
}
template <typename A>
inline Vec<A> sigmoid(Vec<A> x) {
  return broadcast(A(1)) / (broadcast(A(1)) + exp(broadcast(A(0)) - x));
}
template <typename A>
inline Vec<A> silu(Vec<A> x) {
  return x / (broadcast(A(1)) + exp(broadcast(A(0)) - x));
}

template <Activation kActivation, typename A>
inline Vec<A> activate(Vec<A> x) {
  if constexpr (kActivation == Activation::kRelu) return relu(x);
  if constexpr (kActivation == Activation::kRelu6) return relu6(x);
  if constexpr (kActivation == Activation::kElu) return elu(x);
  if constexpr (kActivation == Activation::kSilu) return silu(x);
  return x;
}
template <typename A>
inline Vec<A> activate(Activation activation, Vec<A> x) {
  switch (activation) {
    case Activation::kRelu:
      return relu(x);
    case Activation::kRelu6:
      return relu6(x);
    case Activation::kElu:
      return elu(x);
    case Activation::kSilu:
      return silu(x);
    case Activation::kNone:
      break;
  }
  return x;
}

}  // namespace ik::cpu::IK_ISA
