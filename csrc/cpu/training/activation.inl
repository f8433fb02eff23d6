// Activations and their derivatives at u, PyTorch's conventions: relu'(0) = 0, relu6' = 0 at 0 and 6, elu has alpha 1.
// NaN goes through the activations; at NaN relu' is 1, relu6' is 0, and those of elu and silu are NaN, as in PyTorch's
// vectorised float kernels.

inline float exponential(float v) { return ::expf(v); }
inline double exponential(double v) { return ::exp(v); }
inline float exponential_minus_one(float v) { return ::expm1f(v); }
inline double exponential_minus_one(double v) { return ::expm1(v); }

template <Activation kind, typename A>
inline Vector<A> activate(Vector<A> u) {
  const Vector<A> zero = {};
  if constexpr (kind == Activation::kRelu) {
    return u < zero ? zero : u;
  } else if constexpr (kind == Activation::kRelu6) {
    const Vector<A> six = zero + (A)6;
    const Vector<A> low = u < zero ? zero : u;
    return low > six ? six : low;
  } else if constexpr (kind == Activation::kElu) {
    Vector<A> y = u;
    for (int64_t i = 0; i < kLanes<A>; ++i)
      if (u[i] <= 0) y[i] = exponential_minus_one(u[i]);
    return y;
  } else if constexpr (kind == Activation::kSilu) {
    Vector<A> y = zero;
    for (int64_t i = 0; i < kLanes<A>; ++i) y[i] = u[i] / (1 + exponential(-u[i]));
    return y;
  } else {
    return u;
  }
}

// grad * activation'(u)
template <Activation kind, typename A>
inline Vector<A> activation_gradient(Vector<A> grad, Vector<A> u) {
  const Vector<A> zero = {};
  if constexpr (kind == Activation::kRelu) {
    return u <= zero ? zero : grad;
  } else if constexpr (kind == Activation::kRelu6) {
    const Vector<A> six = zero + (A)6;
    const Vector<A> high = u < six ? grad : zero;
    return u > zero ? high : zero;
  } else if constexpr (kind == Activation::kElu) {
    Vector<A> slope = zero + (A)1;
    for (int64_t i = 0; i < kLanes<A>; ++i)
      if (!(u[i] > 0)) slope[i] = exponential(u[i]);
    return grad * slope;
  } else if constexpr (kind == Activation::kSilu) {
    Vector<A> slope = zero;
    for (int64_t i = 0; i < kLanes<A>; ++i) {
      const A sigmoid = 1 / (1 + exponential(-u[i]));
      slope[i] = sigmoid * (1 + u[i] * (1 - sigmoid));
    }
    return grad * slope;
  } else {
    return grad;
  }
}

template <Activation kind>
struct ActivationTag {
  static constexpr Activation value = kind;
};

template <typename F>
inline void with_activation(Activation kind, const F& f) {
  switch (kind) {
    case Activation::kRelu:
      return f(ActivationTag<Activation::kRelu>{});
    case Activation::kRelu6:
      return f(ActivationTag<Activation::kRelu6>{});
    case Activation::kElu:
      return f(ActivationTag<Activation::kElu>{});
    case Activation::kSilu:
      return f(ActivationTag<Activation::kSilu>{});
    case Activation::kNone:
      return f(ActivationTag<Activation::kNone>{});
  }
}
