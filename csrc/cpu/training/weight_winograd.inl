// Gradients of the weights of dense convolutions of stride 1 by the transpose of Winograd's algorithm (csrc/cpu/
// winograd.h), Down and Across of the window (csrc/cpu/cook_toom.h): of a block of Down::kOutputs x Across::kOutputs
// pixels of grad_z the gradient is Down::kProducts x Across::kProducts products, which are summed over blocks before
// they become taps.

// Blocks whose products are chained: they weigh more than those of pixels, and so do their rounding errors, unless what
// they are made of is rounded much more.
template <typename T>
constexpr int64_t kBlockChain = sizeof(T) == 2 ? 128 : 32;

// Vectors for CookToom, in which the compiler knows all factors.
template <typename A>
struct VectorOps {
  using V = Vector<A>;
  static V times(V x, double factor) { return factor == 1 ? x : x * (A)factor; }
  static V add(V sum, V x, double factor) {
    return factor == 1 ? sum + x : factor == -1 ? sum - x : sum + x * (A)factor;
  }
};

// Blocks of output rows [height * row0, height * row1), where every image begins with a row of its own.
template <typename Down, typename Across>
struct PixelBlocks {
  int64_t lines, length;  // blocks of an image, down and across

  explicit PixelBlocks(const ConvShape& s)
      : lines(ceil_div(s.P(), Down::kOutputs)), length(ceil_div(s.Q(), Across::kOutputs)) {}
};

// Channels [c, c + kColumns) under rows of blocks [row0, row1): out[product][block][kColumns].
template <typename T, typename Down, typename Across>
inline void transform_inputs(const WeightGradient& args, int64_t row0, int64_t row1, int64_t c, Accum<T>* out) {
  using A = Accum<T>;
  using Ops = VectorOps<A>;
  constexpr int64_t L = kLanes<A>, columns = kColumns<A>;
  constexpr int kDown = Down::kProducts, kAcross = Across::kProducts, kWidth = Across::kOutputs;
  constexpr int kShared = kAcross - kWidth;  // columns of neighbouring blocks
  const ConvShape& s = args.shape;
  const PixelBlocks<Down, Across> blocks(s);
  const int64_t product = (row1 - row0) * blocks.length * columns;
  for (int64_t row = row0; row < row1; ++row) {
    const int64_t n = row / blocks.lines, top = row % blocks.lines * Down::kOutputs - s.pad_h;
    for (int64_t v = 0; v < columns && c + v < s.C; v += L) {
      const int64_t channels = s.C - c - v;
      const auto column = [&](int64_t w, Vector<A>* u) __attribute__((always_inline)) {
        Vector<A> d[kDown];
#pragma GCC unroll 12
        for (int64_t r = 0; r < kDown; ++r) {
          const bool inside = top + r >= 0 && top + r < s.H && w >= 0 && w < s.W;
          d[r] = inside ? load_up_to(pixel<T>(args.x, n, top + r, w) + c + v, channels) : Vector<A>{};
        }
        Down::template inputs<Ops>(d, u);
      };
      A* to = out + (row - row0) * blocks.length * columns + v;
      Vector<A> u[kAcross][kDown];  // [column of the block][product down]
#pragma GCC unroll 6
      for (int i = 0; i < kShared; ++i) column(i - s.pad_w, u[i]);
      for (int64_t j = 0; j < blocks.length; ++j, to += columns) {
#pragma GCC unroll 6
        for (int i = kShared; i < kAcross; ++i) column(kWidth * j + i - s.pad_w, u[i]);
#pragma GCC unroll 12
        for (int a = 0; a < kDown; ++a) {
          Vector<A> line[kAcross], w[kAcross];
#pragma GCC unroll 12
          for (int b = 0; b < kAcross; ++b) line[b] = u[b][a];
          Across::template inputs<Ops>(line, w);
#pragma GCC unroll 12
          for (int b = 0; b < kAcross; ++b) store(to + (kAcross * a + b) * product, w[b]);
#pragma GCC unroll 6
          for (int i = 0; i < kShared; ++i) u[i][a] = u[kWidth + i][a];
        }
      }
    }
  }
}

// grad_z of the block's k panels: out[k panel][product][block][kRows].
template <typename T, typename Down, typename Across>
inline void transform_grad_z(const WeightGradient& args, const WeightBlock& block, Accum<T>* out) {
  using A = Accum<T>;
  using Ops = VectorOps<A>;
  constexpr int64_t L = kLanes<A>;
  constexpr int kDown = Down::kProducts, kAcross = Across::kProducts;
  constexpr int kHeight = Down::kOutputs, kWidth = Across::kOutputs;
  const ConvShape& s = args.shape;
  const PixelBlocks<Down, Across> blocks(s);
  const int64_t product = (block.row1 - block.row0) * blocks.length * kRows;
  for (int64_t row = block.row0; row < block.row1; ++row)
    for (int64_t i = 0; i < blocks.length; ++i, out += kRows) {
      const int64_t n = row / blocks.lines, p = row % blocks.lines * kHeight, q = kWidth * i;
      const T* const from = pixel<T>(args.grad_z, n, p, q);
      A* to = out;
      for (int64_t panel = block.k0; panel < block.k1; ++panel, to += kDown * kAcross * product) {
        const int64_t begin = channels_before(s.K, panel), end = channels_before(s.K, panel + 1);
        for (int64_t k = begin; k < end; k += L) {
          const int64_t channels = smaller(L, end - k);
          Vector<A> down[kWidth][kDown];
#pragma GCC unroll 6
          for (int t = 0; t < kWidth; ++t) {
            Vector<A> column[kHeight];
#pragma GCC unroll 6
            for (int r = 0; r < kHeight; ++r) {
              const bool inside = p + r < s.P() && q + t < s.Q();
              const T* const z = from + r * args.grad_z.stride_h + t * args.grad_z.stride_w + k;
              column[r] = inside ? load_up_to(z, channels) : Vector<A>{};
            }
            Down::template output_gradients<Ops>(column, down[t]);
          }
#pragma GCC unroll 12
          for (int a = 0; a < kDown; ++a) {
            Vector<A> line[kWidth], y[kAcross];
#pragma GCC unroll 6
            for (int t = 0; t < kWidth; ++t) line[t] = down[t][a];
            Across::template output_gradients<Ops>(line, y);
#pragma GCC unroll 12
            for (int b = 0; b < kAcross; ++b) store_up_to(to + (kAcross * a + b) * product + k - begin, y[b], channels);
          }
        }
      }
    }
}

template <typename T, typename Down, typename Across>
void weight_gradient_winograd(const WeightGradient& args, const WeightBlock& block, const WeightScratch& scratch,
                              const WeightSums& sums, bool first) {
  using A = Accum<T>;
  constexpr int64_t columns = kColumns<A>, kProducts = Down::kProducts * Across::kProducts;
  const ConvShape& s = args.shape;
  const int64_t count = (block.row1 - block.row0) * PixelBlocks<Down, Across>(s).length;
  A *const strip = static_cast<A*>(scratch.strip), *const grad = static_cast<A*>(scratch.grad);
  transform_grad_z<T, Down, Across>(args, block, grad);
  scratch.row_offset[0] = 0;
  for (int64_t panel = block.c0; panel < block.c1; ++panel) {
    const int64_t c = panel * columns;
    transform_inputs<T, Down, Across>(args, block.row0, block.row1, c, strip);
    for (int64_t product = 0; product < kProducts; ++product)
      for (int64_t k = block.k0; k < block.k1; ++k) {
        const int64_t height = channels_before(s.K, k + 1) - channels_before(s.K, k);
        const auto multiply = s.C - c > kLanes<A> ? PixelProduct<T>::template multiply<2>(height)
                                                  : PixelProduct<T>::template multiply<1>(height);
        multiply_chains<A>(multiply,
                           {grad + ((k - block.k0) * kProducts + product) * count * kRows,
                            strip + product * count * columns, scratch.row_offset, 1, count, columns},
                           kBlockChain<T>,
                           static_cast<A*>(sums.data) + panel * sums.stride_c_panel + product * sums.stride_tap +
                               k * sums.stride_k_panel,
                           sums.stride_row, first);
      }
  }
}

// weight_finish (weight.inl), into O. False if something is not finite: infinities whose difference was taken must be
// computed by the definition.
template <typename O, typename Down, typename Across>
bool weight_finish_winograd(const WeightGradient& args, const WeightSums& sums, int64_t count, int64_t stride,
                            int64_t k0, int64_t k1, const WeightOutput& grad_weight) {
  using A = Accum<O>;
  using Ops = VectorOps<A>;
  constexpr int64_t columns = kColumns<A>, L = kLanes<A>;
  constexpr int kDown = Down::kProducts, kAcross = Across::kProducts;
  const ConvShape& s = args.shape;
  Vector<A> check = {};  // zero or NaN
  for (int64_t panel = k0; panel < k1; ++panel)
    for (int64_t k = channels_before(s.K, panel), row = 0; k < channels_before(s.K, panel + 1); ++k, ++row)
      for (int64_t c = 0; c < s.C; c += L) {
        const A* const from = static_cast<const A*>(sums.data) + c / columns * sums.stride_c_panel +
                              panel * sums.stride_k_panel + row * sums.stride_row + c % columns;
        Vector<A> across[kDown][Across::kTaps];  // [product down][tap across]
        for (int a = 0; a < kDown; ++a) {
          Vector<A> m[kAcross];
          for (int b = 0; b < kAcross; ++b) {
            const A* const p = from + (kAcross * a + b) * sums.stride_tap;
            m[b] = load(p);
            for (int64_t i = 1; i < count; ++i) m[b] += load(p + i * stride);
          }
          Across::template tap_gradients<Ops>(m, across[a]);
        }
        const int64_t left = smaller(L, s.C - c);
        O* const out = static_cast<O*>(grad_weight.data) + k * grad_weight.stride_k + c * grad_weight.stride_c;
        for (int t = 0; t < Across::kTaps; ++t) {
          Vector<A> m[kDown], g[Down::kTaps];
          for (int a = 0; a < kDown; ++a) m[a] = across[a][t];
          Down::template tap_gradients<Ops>(m, g);
          for (int r = 0; r < Down::kTaps; ++r) {
            check += g[r] - g[r];
            O* const to = out + r * grad_weight.stride_r + t * grad_weight.stride_s;
            if (grad_weight.stride_c == 1) {
              store_up_to(to, g[r], left);
              continue;
            }
            alignas(64) A values[L];
            store(values, g[r]);
            for (int64_t j = 0; j < left; ++j) from_accum(values[j], to + j * grad_weight.stride_c);
          }
        }
      }
  bool finite = true;
  for (int64_t j = 0; j < L; ++j) finite = finite && check[j] == 0;
  return finite;
}

template <typename T, typename Down, typename Across>
constexpr WinogradGradient winograd_gradient(int64_t most_weights) {
  return {Down::kTaps,
          Across::kTaps,
          Down::kOutputs,
          Across::kOutputs,
          Down::kProducts * Across::kProducts,
          most_weights,
          {&weight_gradient_winograd<T, Down, Across>, &weight_finish_winograd<T, Down, Across>,
           &weight_finish_winograd<Accum<T>, Down, Across>}};
}

// As in winograd_windows.h; here the sums of larger blocks would no longer fit beside what they are made of.
template <typename T, bool narrow = sizeof(T) == 2>
struct WinogradGradients {
  static constexpr WinogradGradient kAll[] = {
      winograd_gradient<T, CookToom<4, 3>, CookToom<4, 3>>(1 << 16),
      winograd_gradient<T, CookToom<1, 1>, CookToom<6, 7>>(1 << 16),
      winograd_gradient<T, CookToom<6, 7>, CookToom<1, 1>>(1 << 16),
      winograd_gradient<T, CookToom<4, 5>, CookToom<4, 5>>(1 << 14),
  };
};
template <>
struct WinogradGradients<float, false> {
  static constexpr WinogradGradient kAll[] = {winograd_gradient<float, CookToom<2, 3>, CookToom<2, 3>>(1 << 16)};
};
