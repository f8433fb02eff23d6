// Included in front of every mutated source. All mutants of a source are compiled at once; one number chooses the one
// that is active, and calls mark what a test executes. The templates exist for integers only: where the compiler cannot
// apply a mutation, its message names the number, and the mutation is taken out again.
#pragma once
#include <concepts>

extern "C" bool ik_mutant(int number);

namespace ik_mutation {

template <typename T>
concept Index = std::integral<T> && !std::same_as<T, bool>;

#define IK_ALWAYS_INLINE inline __attribute__((always_inline))

// number's mutant adds `by` to the next operand of a comparison or of +=.
template <int number>
struct Plus {
  int by;
};
template <int number>
IK_ALWAYS_INLINE Plus<number> plus(int by) {
  return {ik_mutant(number) ? by : 0};
}
template <int number, Index T>
IK_ALWAYS_INLINE T operator+(Plus<number> plus, T v) {
  return static_cast<T>(v + static_cast<T>(plus.by));
}

// + and - change places.
template <int number>
struct Sign {
  bool flipped;
};
template <int number>
IK_ALWAYS_INLINE Sign<number> sign() {
  return {ik_mutant(number)};
}
template <int number, Index T>
IK_ALWAYS_INLINE T operator*(Sign<number> sign, T v) {
  return sign.flipped ? static_cast<T>(-v) : v;
}

template <int number, Index T>
IK_ALWAYS_INLINE T increment(T v) {
  return static_cast<T>(v + static_cast<T>(ik_mutant(number)));
}
template <int number, Index T>
IK_ALWAYS_INLINE T zero(T v) {
  return ik_mutant(number) ? T{} : v;
}

// && and || lose their right operand.
template <int number>
struct Always {
  bool on;
};
template <int number>
IK_ALWAYS_INLINE Always<number> always() {
  return {ik_mutant(number)};
}
template <int number>
IK_ALWAYS_INLINE bool operator|(Always<number> always, bool v) {
  return always.on || v;
}
template <int number>
struct Never {
  bool on;
};
template <int number>
IK_ALWAYS_INLINE Never<number> never() {
  return {ik_mutant(number)};
}
template <int number>
IK_ALWAYS_INLINE bool operator|(Never<number> never, bool v) {
  return !never.on && v;
}

}  // namespace ik_mutation
