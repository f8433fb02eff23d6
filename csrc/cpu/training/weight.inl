// Gradients of dense and pointwise weights: grad_weight[k][r, s, c] = sum over pixels of grad_z[k] * x[c at (r, s)].

// `height` channels of a pixel; what follows them up to kRows is not read.
template <typename T>
inline void copy_grad(const T* from, int64_t height, Accum<T>* to) {
#if IK_VECTOR_BYTES == 64
  if constexpr (kRows <= kLanes<Accum<T>>) return store_first(to, load_first(from, height), height);
#endif
  for (int64_t j = 0; j < height; ++j) to[j] = to_accum(from[j]);
}

// [k panel][pixel][kRows] of output rows [row0, row1).
template <typename T>
inline void pack_grad_columns(const NhwcInput& grad_z, int64_t P, int64_t Q, int64_t K, const WeightBlock& block,
                              Accum<T>* out) {
  constexpr int64_t group = 4;  // pixels whose lines are read and written together
  const int64_t pixels = (block.row1 - block.row0) * Q;
  for (int64_t row = block.row0; row < block.row1; ++row)
    for (int64_t q = 0; q < Q; q += group) {
      const T* p = pixel<T>(grad_z, row / P, row % P, q);
      const int64_t count = smaller(group, Q - q);
      auto* o = out + ((row - block.row0) * Q + q) * kRows;
      for (int64_t panel = block.k0; panel < block.k1; ++panel, o += pixels * kRows) {
        const int64_t k = channels_before(K, panel), height = channels_before(K, panel + 1) - k;
        for (int64_t i = 0; i < count; ++i) copy_grad(p + i * grad_z.stride_w + k, height, o + i * kRows);
      }
    }
}

// Window and channels as one axis (r, s, c): columns [c, c + kColumns) of every pixel.
template <typename T>
inline void pack_window_columns(const WeightGradient& args, int64_t row0, int64_t row1, int64_t c, Accum<T>* out) {
  using A = Accum<T>;
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
        for (int64_t i = 0; i < count; ++i) out[j + i] = inside ? to_accum(p[i]) : 0;
        j += count;
        channel = 0;
        if (++tap_s == s.S) tap_s = 0, ++tap_r;
      }
      for (int64_t j = left; j < kColumns<A>; ++j) out[j] = 0;
    }
}

// Strips of the images under output rows [row0, row1), one after the other; row_offset finds each row's first pixel.
// Returns the elements of all.
template <typename T>
inline int64_t pack_image_strips(const WeightGradient& args, int64_t row0, int64_t row1, int64_t c,
                                 const WeightScratch& scratch) {
  using A = Accum<T>;
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
  return offset;
}

template <typename A>
struct RightPanel {
  const A* data;
  int64_t elements;
};

// One panel of the right-hand side for output rows [row0, row1): pixel (row, q) at tap offset 0 lies at
// row_offset[row] + q * step. Leaves the offsets in scratch.
template <typename T>
inline RightPanel<Accum<T>> prepare_panel(const WeightGradient& args, int64_t row0, int64_t row1, int64_t c,
                                          const WeightScratch& scratch) {
  using A = Accum<T>;
  constexpr int64_t columns = kColumns<A>;
  const ConvShape& s = args.shape;
  const int64_t Q = s.Q(), rows = row1 - row0, taps = s.R * s.S;
  const int64_t width = (Q - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1;
  A* strip = static_cast<A*>(scratch.strip);
  const int64_t elements = rows * Q * columns;
  if (args.columns) {
    pack_window_columns<T>(args, row0, row1, c, strip);
  } else {
    const int64_t strips = pack_image_strips<T>(args, row0, row1, c, scratch);
    if (!args.depthwise) return {strip, strips};
  }

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
  return {result, elements};
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

// A register block of which only `rows` x `columns` belong to the gradient.
template <typename A>
inline void store_block(const A* block, int64_t rows, int64_t columns, A* out, int64_t out_row, bool first) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; j += kLanes<A>) {
      A* o = out + i * out_row + j;
      const Vector<A> sum = load(block + i * kColumns<A> + j);
      store_up_to(o, first ? sum : load_up_to(o, columns - j) + sum, columns - j);
    }
}

// The product of a weight gradient, a pixel at a time.
template <typename T>
struct PixelProduct {
  using Operand = Accum<T>;

  // [k panel][row][count][kRows]; returns the elements of a k panel.
  static int64_t pack_grad(const WeightGradient& args, const WeightBlock& block, int64_t rows, int64_t count,
                           Operand* out) {
    pack_grad_columns<T>(args.grad_z, args.shape.P(), args.shape.Q(), args.shape.K, block, out);
    return rows * count * kRows;
  }
  static const Operand* right(const RightPanel<Operand>& panel, const PanelTaps&, bool, const WeightScratch&) {
    return panel.data;
  }
  template <int vectors>
  static MultiplyPixels<Operand> multiply(int64_t height) {
    return multiply_pixels_of<Operand, vectors>(height, typename HeightsUpTo<kRows>::Type{});
  }
  static void run(MultiplyPixels<Operand> multiply, const PixelPairs<Operand>& pixels, Operand* out, int64_t out_row,
                  bool first) {
    constexpr int64_t kChain = 128;
    multiply_chains(multiply, pixels, kChain, out, out_row, first);
  }
};

template <typename T, template <typename> typename Product>
void weight_gradient(const WeightGradient& args, const WeightBlock& block, const WeightScratch& scratch,
                     const WeightSums& sums, bool first) {
  using A = Accum<T>;
  using Operand = typename Product<T>::Operand;
  constexpr int64_t columns = kColumns<A>;
  const ConvShape& s = args.shape;
  const int64_t pixels = (block.row1 - block.row0) * s.Q(), channels = panel_channels(args);
  const PanelTaps taps = PanelTaps::of(args, A{});
  // Without a window rows follow each other: one long row.
  const bool joined = args.columns || args.depthwise || (taps.count == 1 && s.stride_h == 1 && s.stride_w == 1);
  const int64_t rows = joined ? 1 : block.row1 - block.row0, count = joined ? pixels : s.Q();
  Operand* const grad = static_cast<Operand*>(scratch.grad);
  alignas(64) A edge[kRows * columns];
  const int64_t panel_grad = Product<T>::pack_grad(args, block, rows, count, grad);
  for (int64_t panel = block.c0; panel < block.c1; ++panel) {
    const int64_t c = panel * columns, width = smaller(columns, channels - c);
    const Operand* strip =
        Product<T>::right(prepare_panel<T>(args, block.row0, block.row1, c, scratch), taps, joined, scratch);
    for (int64_t k = block.k0; k < block.k1; ++k) {
      const int64_t before = channels_before(s.K, k), height = channels_before(s.K, k + 1) - before;
      const auto multiply =
          width > kLanes<A> ? Product<T>::template multiply<2>(height) : Product<T>::template multiply<1>(height);
      PixelPairs<Operand> pixel_pairs{
          grad + (k - block.k0) * panel_grad, strip, scratch.row_offset, rows, count, taps.step};
      A* out = static_cast<A*>(sums.data) + panel * sums.stride_c_panel +
               (sums.whole ? k * sums.stride_k_panel : before * sums.stride_row);
      for (int64_t t = 0; t < taps.count; ++t, out += sums.stride_tap) {
        pixel_pairs.b = strip + taps.offset(t);
        if (sums.whole || width % kLanes<A> == 0) {
          Product<T>::run(multiply, pixel_pairs, out, sums.stride_row, first);
        } else {
          Product<T>::run(multiply, pixel_pairs, edge, columns, true);
          store_block(edge, height, width, out, sums.stride_row, first);
        }
      }
    }
  }
}

template <typename T>
bool weight_finish(const WeightGradient& args, const WeightSums& sums, int64_t count, int64_t stride, int64_t k0,
                   int64_t k1, const WeightOutput& grad_weight) {
  using A = Accum<T>;
  constexpr int64_t columns = kColumns<A>, L = kLanes<A>;
  const ConvShape& s = args.shape;
  const int64_t window = args.depthwise ? 1 : s.R * s.S, taps = args.columns ? 1 : window;
  const int64_t channels = panel_channels(args);
  const bool adjacent = grad_weight.stride_c == 1 && !args.columns;
  alignas(64) A sum[columns];
  int64_t k_panel = k0;
  for (int64_t k = channels_before(s.K, k0); k < channels_before(s.K, k1); ++k) {
    if (k == channels_before(s.K, k_panel + 1)) ++k_panel;
    for (int64_t c0 = 0, panel = 0; c0 < channels; c0 += columns, ++panel)
      for (int64_t t = 0; t < taps; ++t) {
        const A* p = static_cast<const A*>(sums.data) + panel * sums.stride_c_panel + t * sums.stride_tap +
                     k_panel * sums.stride_k_panel + (k - channels_before(s.K, k_panel)) * sums.stride_row;
        // Of a narrow panel only the first vector was written; the other is not stored.
        Vector<A> low = load(p), high = load(p + L);
        for (int64_t i = 1; i < count; ++i) {
          low += load(p + i * stride);
          high += load(p + i * stride + L);
        }
        T* out = static_cast<T*>(grad_weight.data) + k * grad_weight.stride_k;
        const int64_t left = smaller(columns, channels - c0);
        if (!args.columns) out += t / s.S * grad_weight.stride_r + t % s.S * grad_weight.stride_s;
        if (adjacent) {
          store_up_to(out + c0, low, left);
          if (left > L) store_up_to(out + c0 + L, high, left - L);
          continue;
        }
        store(sum, low);
        store(sum + L, high);
        for (int64_t j = 0; j < left; ++j) {
          const int64_t c = args.columns ? (c0 + j) % s.C : c0 + j, w = args.columns ? (c0 + j) / s.C : 0;
          from_accum(sum[j],
                     out + c * grad_weight.stride_c + w / s.S * grad_weight.stride_r + w % s.S * grad_weight.stride_s);
        }
      }
  }
  return true;
}
