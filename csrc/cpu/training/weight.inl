// Gradients of dense and pointwise weights: grad_weight[k][r, s, c] = sum over pixels of grad_z[k] * x[c at (r, s)].

// [k panel][pixel][kRows] of output rows [row0, row1).
template <typename T>
inline void pack_grad_columns(const NhwcInput& grad_z, int64_t P, int64_t Q, int64_t K, int64_t row0, int64_t row1,
                              int64_t k0, int64_t k1, typename AccumulatorOf<T>::Type* out) {
  const int64_t pixels = (row1 - row0) * Q;
  for (int64_t row = row0; row < row1; ++row)
    for (int64_t q = 0; q < Q; ++q) {
      const T* p = pixel<T>(grad_z, row / P, row % P, q);
      auto* o = out + ((row - row0) * Q + q) * kRows;
      for (int64_t panel = k0; panel < k1; ++panel, o += pixels * kRows) {
        const T* values = p + panel * kRows;
        if ((panel + 1) * kRows <= K) {
#pragma GCC unroll 12
          for (int j = 0; j < kRows; ++j) o[j] = widen(values[j]);
        } else {
          for (int64_t j = 0; j < kRows; ++j) o[j] = panel * kRows + j < K ? widen(values[j]) : 0;
        }
      }
    }
}

// Window and channels as one axis (r, s, c): columns [c, c + kColumns) of every pixel.
template <typename T>
inline void pack_window_columns(const WeightGradient& args, int64_t row0, int64_t row1, int64_t c,
                                typename AccumulatorOf<T>::Type* out) {
  using A = typename AccumulatorOf<T>::Type;
  const ConvShape& s = args.shape;
  const int64_t P = s.P(), Q = s.Q(), left = smaller(kColumns<A>, s.R * s.S * s.C - c);
  for (int64_t row = row0; row < row1; ++row)
    for (int64_t q = 0; q < Q; ++q, out += kColumns<A>) {
      const int64_t n = row / P, y0 = row % P * s.stride_h - s.pad_h, x0 = q * s.stride_w - s.pad_w;
      int64_t channel = c % s.C, tap_s = c / s.C % s.S, tap_r = c / s.C / s.S;
      for (int64_t j = 0; j < left;) {
        const int64_t y = y0 + tap_r * s.dilation_h, x = x0 + tap_s * s.dilation_w;
        const int64_t count = smaller(left - j, s.C - channel);
        const bool inside = y >= 0 && y < s.H && x >= 0 && x < s.W;
        const T* p = inside ? pixel<T>(args.x, n, y, x) + channel : nullptr;
        for (int64_t i = 0; i < count; ++i) out[j + i] = inside ? widen(p[i]) : 0;
        j += count;
        channel = 0;
        if (++tap_s == s.S) tap_s = 0, ++tap_r;
      }
      for (int64_t j = left; j < kColumns<A>; ++j) out[j] = 0;
    }
}

// Strips of the images under output rows [row0, row1), one after the other; row_offset finds each row's first pixel.
template <typename T>
inline void pack_image_strips(const WeightGradient& args, int64_t row0, int64_t row1, int64_t c,
                              const WeightScratch& scratch) {
  using A = typename AccumulatorOf<T>::Type;
  const ConvShape& s = args.shape;
  const int64_t P = s.P(), width = (s.Q() - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1;
  int64_t offset = 0;
  for (int64_t row = row0; row < row1;) {
    const int64_t n = row / P, p0 = row % P, p1 = smaller(P, p0 + row1 - row);
    const int64_t height = (p1 - p0 - 1) * s.stride_h + (s.R - 1) * s.dilation_h + 1;
    pack_strip<T>(args.x, args.input_activation, n, s.H, s.W, s.C, c, p0 * s.stride_h - s.pad_h, height, -s.pad_w,
                  width, static_cast<A*>(scratch.strip) + offset);
    for (int64_t p = p0; p < p1; ++p, ++row)
      scratch.row_offset[row - row0] = offset + (p - p0) * s.stride_h * width * kColumns<A>;
    offset += height * width * kColumns<A>;
  }
}

// One panel of the right-hand side for output rows [row0, row1): pixel (row, q) at tap offset 0 lies at
// row_offset[row] + q * step. Leaves the offsets in scratch.
template <typename T>
inline const typename AccumulatorOf<T>::Type* prepare_panel(const WeightGradient& args, int64_t row0, int64_t row1,
                                                            int64_t c, const WeightScratch& scratch) {
  using A = typename AccumulatorOf<T>::Type;
  constexpr int64_t columns = kColumns<A>;
  const ConvShape& s = args.shape;
  const int64_t Q = s.Q(), rows = row1 - row0, taps = s.R * s.S;
  const int64_t width = (Q - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1;
  A* strip = static_cast<A*>(scratch.strip);
  if (args.columns)
    pack_window_columns<T>(args, row0, row1, c, strip);
  else
    pack_image_strips<T>(args, row0, row1, c, scratch);
  if (!args.columns && !args.depthwise) return strip;

  A* result = strip;
  if (args.depthwise) {
    result = static_cast<A*>(scratch.product);
    const A* weight = static_cast<const A*>(args.depthwise) + c * (taps + 1);
    int64_t* tap_offset = scratch.row_offset + rows;
    for (int64_t t = 0; t < taps; ++t)
      tap_offset[t] = (t / s.S * s.dilation_h * width + t % s.S * s.dilation_w) * columns;
    for (int64_t row = 0; row < rows; ++row)
      tap_sum<A>(strip + scratch.row_offset[row], tap_offset, taps, weight, weight + taps * columns, Q,
                 s.stride_w * columns, result + row * Q * columns);
    with_activation(args.mid_activation, [&](auto tag) {
      if constexpr (decltype(tag)::value != Activation::kNone)
        for (A *p = result, *end = p + rows * Q * columns; p < end; p += kLanes<A>)
          store(p, activate<decltype(tag)::value, A>(load(p)));
    });
  }
  for (int64_t row = 0; row < rows; ++row) scratch.row_offset[row] = row * Q * columns;
  return result;
}

// Taps of a panel that prepare_panel made, and where they begin.
struct PanelTaps {
  int64_t count, step;
  int64_t S, down, right;

  template <typename A>
  static PanelTaps of(const WeightGradient& args, A) {
    const ConvShape& s = args.shape;
    const int64_t columns = kColumns<A>, width = (s.Q() - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1;
    if (args.columns || args.depthwise) return {1, columns, 1, 0, 0};
    return {s.R * s.S, s.stride_w * columns, s.S, s.dilation_h * width * columns, s.dilation_w * columns};
  }
  int64_t offset(int64_t tap) const { return tap / S * down + tap % S * right; }
};

inline int64_t panel_channels(const WeightGradient& args) {
  return args.columns ? args.shape.R * args.shape.S * args.shape.C : args.shape.C;
}

template <typename T>
void weight_gradient(const WeightGradient& args, int64_t row0, int64_t row1, int64_t k0, int64_t k1,
                     const WeightScratch& scratch, void* partial, bool first) {
  using A = typename AccumulatorOf<T>::Type;
  constexpr int64_t columns = kColumns<A>, tile = kRows * columns;
  const ConvShape& s = args.shape;
  const int64_t Q = s.Q(), rows = row1 - row0, k_panels = ceil_div(s.K, kRows);
  const PanelTaps taps = PanelTaps::of(args, A{});
  const A* grad = static_cast<const A*>(scratch.grad);
  pack_grad_columns<T>(args.grad_z, s.P(), Q, s.K, row0, row1, k0, k1, static_cast<A*>(scratch.grad));
  for (int64_t c = 0, panel = 0; c < panel_channels(args); c += columns, ++panel) {
    const A* strip = prepare_panel<T>(args, row0, row1, c, scratch);
    for (int64_t k = k0; k < k1; ++k)
      for (int64_t t = 0; t < taps.count; ++t)
        multiply_pixels(grad + (k - k0) * rows * Q * kRows, strip + taps.offset(t), scratch.row_offset, rows, Q,
                        taps.step, static_cast<A*>(partial) + ((panel * taps.count + t) * k_panels + k) * tile, first);
  }
}

template <typename T>
void weight_finish(const WeightGradient& args, const void* partial, int64_t count, int64_t stride, int64_t k0,
                   int64_t k1, void* grad_weight) {
  using A = typename AccumulatorOf<T>::Type;
  constexpr int64_t columns = kColumns<A>, tile = kRows * columns;
  const ConvShape& s = args.shape;
  const int64_t window = args.depthwise ? 1 : s.R * s.S, taps = args.columns ? 1 : window;
  const int64_t channels = args.columns ? window * s.C : s.C, k_panels = ceil_div(s.K, kRows);
  T* out = static_cast<T*>(grad_weight);
  alignas(64) A sum[columns];
  for (int64_t k = k0 * kRows; k < smaller(s.K, k1 * kRows); ++k)
    for (int64_t c0 = 0, panel = 0; c0 < channels; c0 += columns, ++panel)
      for (int64_t t = 0; t < taps; ++t) {
        const A* p =
            static_cast<const A*>(partial) + ((panel * taps + t) * k_panels + k / kRows) * tile + k % kRows * columns;
        for (int64_t j = 0; j < columns; ++j) sum[j] = p[j];
        for (int64_t i = 1; i < count; ++i)
          for (int64_t j = 0; j < columns; ++j) sum[j] += p[i * stride + j];
        for (int64_t j = 0; j < smaller(columns, channels - c0); ++j) {
          const int64_t c = args.columns ? (c0 + j) % s.C : c0 + j, w = args.columns ? (c0 + j) / s.C : t;
          narrow(sum[j], out + (k * s.C + c) * window + w);
        }
      }
}
