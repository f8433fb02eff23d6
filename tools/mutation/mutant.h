// Included in front of every mutated source. All mutants of a source are compiled at once; one number chooses the one
// that is active, and calls mark what a test executes. The templates exist for integers only: where the compiler cannot
// apply a mutation, it is taken out again.
#pragma once
#include <concepts>

extern "C" bool ik_mutant(int number);

namespace ik_mutation {

template <typename T>
concept Index = std::integral<T> && !std::same_as<T, bool>;

// number's mutant adds `by` to the next operand of a comparison or of +=.
struct Plus {
  int by;
};
inline __attribute__((always_inline)) Plus plus(int number, int by) { return {ik_mutant(number) ? by : 0}; }
template <Index T>
inline __attribute__((always_inline)) T operator+(Plus plus, T v) {
  return static_cast<T>(v + static_cast<T>(plus.by));
}

// + and - change places.
struct Sign {
  bool flipped;
};
inline __attribute__((always_inline)) Sign sign(int number) { return {ik_mutant(number)}; }
template <Index T>
inline __attribute__((always_inline)) T operator*(Sign sign, T v) {
  return sign.flipped ? static_cast<T>(-v) : v;
}

template <Index T>
inline __attribute__((always_inline)) T increment(int number, T v) {
  return static_cast<T>(v + static_cast<T>(ik_mutant(number)));
}
template <Index T>
inline __attribute__((always_inline)) T zero(int number, T v) {
  return ik_mutant(number) ? T{} : v;
}

// && and || lose their right operand.
struct Always {
  bool on;
};
inline __attribute__((always_inline)) Always always(int number) { return {ik_mutant(number)}; }
inline __attribute__((always_inline)) bool operator|(Always always, bool v) { return always.on || v; }
struct Never {
  bool on;
};
inline __attribute__((always_inline)) Never never(int number) { return {ik_mutant(number)}; }
inline __attribute__((always_inline)) bool operator|(Never never, bool v) { return !never.on && v; }

}  // namespace ik_mutation
