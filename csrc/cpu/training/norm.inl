// Batch statistics, normalise + activation and its gradient over ranges of pixels.

// Calls f(n, p, q, count, done) for the runs of consecutive pixels of a row that make up [m0, m1).
template <typename F>
inline void for_each_run(int64_t P, int64_t Q, int64_t m0, int64_t m1, const F& f) {
  for (int64_t m = m0; m < m1;) {
    const int64_t row = m / Q, q = m % Q, count = smaller(Q - q, m1 - m);
    f(row / P, row % P, q, count);
    m += count;
  }
}

template <typename T>
inline const T* pixel(const NhwcInput& view, int64_t n, int64_t h, int64_t w) {
  return static_cast<const T*>(view.data) + n * view.stride_n + h * view.stride_h + w * view.stride_w;
}
template <typename T>
inline T* pixel(const NhwcOutput& view, int64_t n, int64_t h, int64_t w) {
  return static_cast<T*>(view.data) + n * view.stride_n + h * view.stride_h + w * view.stride_w;
}

constexpr int kStatisticsVectors = 4;

// Pixels summed in one go: longer sums in 32 bits lose more than PyTorch's, which adds in 64. Counted from the start of
// the range and not of a row, so that the bits do not depend on which rows are adjacent in memory.
constexpr int64_t kSummedPixels = 16;

// Two passes while the pixels are in cache: their mean becomes the shift, so that squares lose nothing to a large mean.
template <typename T, int vectors>
inline void statistics_panel(const ScaleShiftAct& args, int64_t m0, int64_t m1, int64_t c, int64_t left,
                             Accum<T>* shift, Accum<T>* sum, Accum<T>* square) {
  using A = Accum<T>;
  using V = Vector<A>;
  constexpr int64_t L = kLanes<A>;
  V mean[vectors] = {}, residue[vectors] = {}, squares[vectors] = {};
  for_each_run(args.P, args.Q, m0, m1, [&](int64_t n, int64_t p, int64_t q, int64_t count) {
    const T* z = pixel<T>(args.z, n, p, q) + c;
    for (int64_t i = 0; i < count; ++i, z += args.z.stride_w)
      for (int v = 0; v < vectors; ++v) mean[v] += vectors > 1 ? load(z + v * L) : load_up_to(z, left);
  });
  for (int v = 0; v < vectors; ++v) mean[v] /= (A)(m1 - m0);
  V some[vectors] = {}, some_squares[vectors] = {};
  const auto flush = [&] {
    for (int v = 0; v < vectors; ++v) {
      residue[v] += some[v];
      squares[v] += some_squares[v];
      some[v] = some_squares[v] = V{};
    }
  };
  int64_t summed = 0;
  for_each_run(args.P, args.Q, m0, m1, [&](int64_t n, int64_t p, int64_t q, int64_t count) {
    const T* z = pixel<T>(args.z, n, p, q) + c;
    for (int64_t i = 0; i < count;) {
      const int64_t end = smaller(count, i + kSummedPixels - summed % kSummedPixels);
      for (summed += end - i; i < end; ++i, z += args.z.stride_w)
        for (int v = 0; v < vectors; ++v) {
          const V centred = (vectors > 1 ? load(z + v * L) : load_up_to(z, left)) - mean[v];
          some[v] += centred;
          some_squares[v] += centred * centred;
        }
      if (summed % kSummedPixels == 0) flush();
    }
  });
  flush();
  for (int v = 0; v < vectors; ++v) {
    store_up_to(shift + c + v * L, mean[v], left - v * L);
    store_up_to(sum + c + v * L, residue[v], left - v * L);
    store_up_to(square + c + v * L, squares[v], left - v * L);
  }
}

template <typename T>
void statistics(const ScaleShiftAct& args, int64_t m0, int64_t m1, void* shift, void* sum, void* square) {
  using A = Accum<T>;
  constexpr int64_t L = kLanes<A>;
  int64_t c = 0;
  for (; c + kStatisticsVectors * L <= args.K; c += kStatisticsVectors * L)
    statistics_panel<T, kStatisticsVectors>(args, m0, m1, c, args.K - c, static_cast<A*>(shift), static_cast<A*>(sum),
                                            static_cast<A*>(square));
  for (; c < args.K; c += L)
    statistics_panel<T, 1>(args, m0, m1, c, args.K - c, static_cast<A*>(shift), static_cast<A*>(sum),
                           static_cast<A*>(square));
}

// f(channel, lanes) for vectors of a pixel, the last one perhaps partial.
template <typename A, typename F>
inline void for_each_vector(int64_t K, const F& f) {
  for (int64_t c = 0; c < K; c += kLanes<A>) f(c, K - c);
}

template <typename T>
void scale_shift_act(const ScaleShiftAct& args, int64_t m0, int64_t m1) {
  using A = Accum<T>;
  using V = Vector<A>;
  const A* scale = static_cast<const A*>(args.scale);
  const A* shift = static_cast<const A*>(args.shift);
  const bool residual = args.residual.data != nullptr;
  with_activation(args.activation, [&](auto tag) {
    for_each_run(args.P, args.Q, m0, m1, [&](int64_t n, int64_t p, int64_t q, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        const T* z = pixel<T>(args.z, n, p, q + i);
        const T* r = residual ? pixel<T>(args.residual, n, p, q + i) : nullptr;
        T* y = pixel<T>(args.y, n, p, q + i);
        for_each_vector<A>(args.K, [&](int64_t c, int64_t left) {
          V u = load_up_to(z + c, left);
          if (scale) u *= load_up_to(scale + c, left);
          if (shift) u += load_up_to(shift + c, left);
          if (r) u += load_up_to(r + c, left);
          store_up_to(y + c, activate<decltype(tag)::value, A>(u), left);
        });
      }
    });
  });
}

constexpr int kReduceVectors = 4;

template <typename T, Activation kind, int vectors>
inline void norm_reduce_panel(const BnActBackward& args, const NormCoefficients& norm, int64_t m0, int64_t m1,
                              int64_t c, int64_t left, Accum<T>* sum, Accum<T>* product) {
  using A = Accum<T>;
  using V = Vector<A>;
  constexpr int64_t L = kLanes<A>;
  const bool residual = args.residual.data != nullptr;
  auto get = [&](const auto* p) { return vectors > 1 ? load(p) : load_up_to(p, left); };
  V mean[vectors], scale[vectors], shift[vectors], sums[vectors] = {}, products[vectors] = {};
  for (int v = 0; v < vectors; ++v) {
    mean[v] = get(static_cast<const A*>(norm.mean) + c + v * L);
    scale[v] = get(static_cast<const A*>(norm.scale) + c + v * L);
    shift[v] = get(static_cast<const A*>(norm.shift) + c + v * L);
  }
  V some[vectors] = {}, some_products[vectors] = {};
  const auto flush = [&] {
    for (int v = 0; v < vectors; ++v) {
      sums[v] += some[v];
      products[v] += some_products[v];
      some[v] = some_products[v] = V{};
    }
  };
  int64_t summed = 0;
  for_each_run(args.P, args.Q, m0, m1, [&](int64_t n, int64_t p, int64_t q, int64_t count) {
    const T* g = pixel<T>(args.grad_y, n, p, q) + c;
    const T* z = pixel<T>(args.z, n, p, q) + c;
    const T* r = residual ? pixel<T>(args.residual, n, p, q) + c : nullptr;
    for (int64_t i = 0; i < count;) {
      const int64_t end = smaller(count, i + kSummedPixels - summed % kSummedPixels);
      for (summed += end - i; i < end; ++i) {
        for (int v = 0; v < vectors; ++v) {
          const V centred = get(z + v * L) - mean[v];
          V u = centred * scale[v] + shift[v];
          if (r) u += get(r + v * L);
          const V grad = activation_gradient<kind, A>(get(g + v * L), u);
          some[v] += grad;
          some_products[v] += grad * centred;
        }
        g += args.grad_y.stride_w;
        z += args.z.stride_w;
        if (r) r += args.residual.stride_w;
      }
      if (summed % kSummedPixels == 0) flush();
    }
  });
  flush();
  for (int v = 0; v < vectors; ++v) {
    store_up_to(sum + c + v * L, sums[v], left - v * L);
    store_up_to(product + c + v * L, products[v], left - v * L);
  }
}

template <typename T>
void norm_reduce(const BnActBackward& args, const NormCoefficients& norm, int64_t m0, int64_t m1, void* sum,
                 void* product) {
  using A = Accum<T>;
  constexpr int64_t L = kLanes<A>;
  with_activation(args.activation, [&](auto tag) {
    constexpr Activation kind = decltype(tag)::value;
    int64_t c = 0;
    for (; c + kReduceVectors * L <= args.K; c += kReduceVectors * L)
      norm_reduce_panel<T, kind, kReduceVectors>(args, norm, m0, m1, c, args.K - c, static_cast<A*>(sum),
                                                 static_cast<A*>(product));
    for (; c < args.K; c += L)
      norm_reduce_panel<T, kind, 1>(args, norm, m0, m1, c, args.K - c, static_cast<A*>(sum), static_cast<A*>(product));
  });
}

template <typename T>
void norm_apply(const BnActBackward& args, const NormCoefficients& norm, int64_t m0, int64_t m1) {
  using A = Accum<T>;
  using V = Vector<A>;
  const A* mean = static_cast<const A*>(norm.mean);
  const A* scale = static_cast<const A*>(norm.scale);
  const A* shift = static_cast<const A*>(norm.shift);
  const A* k1 = static_cast<const A*>(norm.k1);
  const A* k2 = static_cast<const A*>(norm.k2);
  const bool training = args.training && args.mean != nullptr;
  with_activation(args.activation, [&](auto tag) {
    for_each_run(args.P, args.Q, m0, m1, [&](int64_t n, int64_t p, int64_t q, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        const T* g = pixel<T>(args.grad_y, n, p, q + i);
        const T* z = pixel<T>(args.z, n, p, q + i);
        const T* r = args.residual.data ? pixel<T>(args.residual, n, p, q + i) : nullptr;
        T* gz = args.grad_z.data ? pixel<T>(args.grad_z, n, p, q + i) : nullptr;
        T* gr = args.grad_residual.data ? pixel<T>(args.grad_residual, n, p, q + i) : nullptr;
        for_each_vector<A>(args.K, [&](int64_t c, int64_t left) {
          const V centred = load_up_to(z + c, left) - load_up_to(mean + c, left);
          const V factor = load_up_to(scale + c, left);
          V u = centred * factor + load_up_to(shift + c, left);
          if (r) u += load_up_to(r + c, left);
          const V grad = activation_gradient<decltype(tag)::value, A>(load_up_to(g + c, left), u);
          if (gr) store_up_to(gr + c, grad, left);
          if (!gz) return;
          V out = grad * factor;
          if (training) out -= load_up_to(k1 + c, left) + centred * load_up_to(k2 + c, left);
          store_up_to(gz + c, out, left);
        });
      }
    });
  });
}
