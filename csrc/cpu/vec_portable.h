// Vectors of the portable build: 16 bytes, through the compiler's vector extension (SSE2, NEON, or scalar code).
// The three vec_*.h offer one interface, so that a kernel written once against it is compiled once per instruction set:
// Vec<A>::kLanes, broadcast, load and store of any storage type (whole, or the first n lanes), arithmetic, comparisons.
// vmax and vmin return their second argument where either is NaN, vmax_nan returns NaN.
#pragma once
#include <cmath>

#include "cpu/storage.h"

namespace ik::cpu::IK_ISA {

template <typename A>
struct Vec;
template <>
struct Vec<float> {
  static constexpr int kLanes = 4;
  typedef float Raw __attribute__((vector_size(16)));
  typedef int32_t Mask __attribute__((vector_size(16)));
  Raw v;
};
template <>
struct Vec<double> {
  static constexpr int kLanes = 2;
  typedef double Raw __attribute__((vector_size(16)));
  typedef int64_t Mask __attribute__((vector_size(16)));
  Raw v;
};
using VecF = Vec<float>;
using VecD = Vec<double>;

template <typename A>
inline Vec<A> broadcast(A value) {
  Vec<A> result;
  for (int i = 0; i < Vec<A>::kLanes; i++) result.v[i] = value;
  return result;
}
template <typename T>
inline Vec<Accum<T>> load(const T* from) {
  Vec<Accum<T>> result;
  for (int i = 0; i < result.kLanes; i++) result.v[i] = to_accum(from[i]);
  return result;
}
inline VecF load(const float* from) {
  VecF result;
  std::memcpy(&result.v, from, sizeof result.v);
  return result;
}
inline VecD load(const double* from) {
  VecD result;
  std::memcpy(&result.v, from, sizeof result.v);
  return result;
}
template <typename T>
inline Vec<Accum<T>> load(const T* from, int n) {
  Vec<Accum<T>> result = broadcast<Accum<T>>(0);
  for (int i = 0; i < n; i++) result.v[i] = to_accum(from[i]);
  return result;
}
template <typename T>
inline void store(T* to, Vec<Accum<T>> value) {
  for (int i = 0; i < value.kLanes; i++) from_accum(value.v[i], &to[i]);
}
inline void store(float* to, VecF value) { std::memcpy(to, &value.v, sizeof value.v); }
inline void store(double* to, VecD value) { std::memcpy(to, &value.v, sizeof value.v); }
template <typename T>
inline void store(T* to, Vec<Accum<T>> value, int n) {
  for (int i = 0; i < n; i++) from_accum(value.v[i], &to[i]);
}

template <typename A>
inline Vec<A> operator+(Vec<A> a, Vec<A> b) {
  return {a.v + b.v};
}
template <typename A>
inline Vec<A> operator-(Vec<A> a, Vec<A> b) {
  return {a.v - b.v};
}
template <typename A>
inline Vec<A> operator*(Vec<A> a, Vec<A> b) {
  return {a.v * b.v};
}
template <typename A>
inline Vec<A> operator/(Vec<A> a, Vec<A> b) {
  return {a.v / b.v};
}
template <typename A>
inline Vec<A> fmadd(Vec<A> a, Vec<A> b, Vec<A> c) {
  return {a.v * b.v + c.v};
}
template <typename A>
inline void accumulate(Vec<A>& sum, Vec<A> a, Vec<A> b) {
  sum = fmadd(a, b, sum);
}
template <typename A>
inline Vec<A> vmax(Vec<A> a, Vec<A> b) {
  return {a.v > b.v ? a.v : b.v};
}
template <typename A>
inline Vec<A> vmax_nan(Vec<A> a, Vec<A> b) {
  return {a.v != a.v ? a.v : vmax(a, b).v};
}
template <typename A>
inline Vec<A> vmin(Vec<A> a, Vec<A> b) {
  return {a.v < b.v ? a.v : b.v};
}
// a > b ? yes : no
template <typename A>
inline Vec<A> where_greater(Vec<A> a, Vec<A> b, Vec<A> yes, Vec<A> no) {
  return {a.v > b.v ? yes.v : no.v};
}
// a > b or a is NaN ? yes : no
template <typename A>
inline Vec<A> where_greater_or_nan(Vec<A> a, Vec<A> b, Vec<A> yes, Vec<A> no) {
  return {((a.v > b.v) | (a.v != a.v)) ? yes.v : no.v};
}
// The first n lanes, whole numbers from 0 to 255, as bytes.
template <typename A>
inline void store_bytes(uint8_t* to, Vec<A> a, int n) {
  for (int i = 0; i < n; i++) to[i] = static_cast<uint8_t>(a.v[i]);
}
// sum + (bytes == number ? a : 0) in the first n lanes
template <typename A>
inline Vec<A> add_where_byte(Vec<A> sum, Vec<A> a, const uint8_t* bytes, int number, int n) {
  for (int i = 0; i < n; i++) sum.v[i] += bytes[i] == number ? a.v[i] : 0;
  return sum;
}
template <typename A>
inline bool any_nan(Vec<A> a) {
  for (int i = 0; i < Vec<A>::kLanes; i++)
    if (a.v[i] != a.v[i]) return true;
  return false;
}
inline VecF round_nearest(VecF a) {
  for (int i = 0; i < VecF::kLanes; i++) a.v[i] = std::nearbyintf(a.v[i]);
  return a;
}
// 2^a for integral a in [-126, 127]
inline VecF power_of_two(VecF a) {
  for (int i = 0; i < VecF::kLanes; i++)
    a.v[i] =
        a.v[i] >= -126 && a.v[i] <= 127 ? bits_float(static_cast<uint32_t>(static_cast<int>(a.v[i]) + 127) << 23) : 0;
  return a;
}
// a0 b0 a1 b1 ...: the first kLanes of them into low, the rest into high.
template <typename A>
inline void interleave(Vec<A> a, Vec<A> b, Vec<A>* low, Vec<A>* high) {
  Vec<A> first = a, last = a;
  for (int i = 0; i < Vec<A>::kLanes; i++) {
    const int half = Vec<A>::kLanes / 2;
    first.v[i] = i % 2 == 0 ? a.v[i / 2] : b.v[i / 2];
    last.v[i] = i % 2 == 0 ? a.v[half + i / 2] : b.v[half + i / 2];
  }
  *low = first;
  *high = last;
}
template <typename A>
inline A horizontal_sum(Vec<A> a) {
  A sum = 0;
  for (int i = 0; i < Vec<A>::kLanes; i++) sum += a.v[i];
  return sum;
}

}  // namespace ik::cpu::IK_ISA
