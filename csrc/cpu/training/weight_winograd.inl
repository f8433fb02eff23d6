// Gradients of 3 x 3 weights of stride 1 by Winograd's F(3 x 3, 2 x 2), the transpose of csrc/cpu/winograd.h's
// algorithm: of a block of 2 x 2 pixels of grad_z the gradient is 16 products instead of 36. In one direction,
//   g0 = m0 + (m1 + m2) / 2    m0 = (d0 - d2) y0           m1 = (d1 + d2) (y0 + y1)
//   g1 =      (m1 - m2) / 2    m3 = (d3 - d1) y1           m2 = (d2 - d1) (y0 - y1)
//   g2 = m3 + (m1 + m2) / 2
// The m are summed over blocks before they are added up.

constexpr int64_t kProducts = 16;
// Blocks whose products are chained: they weigh more than those of pixels, and so do their rounding errors.
constexpr int64_t kBlockChain = 32;

// Blocks of output rows [2 * row0, 2 * row1), where every image begins with a row of its own.
struct PixelBlocks {
  int64_t lines, length;  // blocks of an image, down and across

  explicit PixelBlocks(const ConvShape& s) : lines(ceil_div(s.P(), 2)), length(ceil_div(s.Q(), 2)) {}
};

template <typename A>
inline void transform_pixels(const Vector<A>* d, Vector<A>* out) {
  out[0] = d[0] - d[2];
  out[1] = d[1] + d[2];
  out[2] = d[2] - d[1];
  out[3] = d[3] - d[1];
}

// Channels [c, c + kColumns) under rows of blocks [row0, row1): out[product][block][kColumns].
template <typename T>
inline void transform_inputs(const WeightGradient& args, int64_t row0, int64_t row1, int64_t c, Accum<T>* out) {
  using A = Accum<T>;
  constexpr int64_t L = kLanes<A>, columns = kColumns<A>;
  const ConvShape& s = args.shape;
  const PixelBlocks blocks(s);
  const int64_t product = (row1 - row0) * blocks.length * columns;
  for (int64_t row = row0; row < row1; ++row) {
    const int64_t n = row / blocks.lines, top = row % blocks.lines * 2 - s.pad_h;
    for (int64_t v = 0; v < columns && c + v < s.C; v += L) {
      const int64_t channels = s.C - c - v;
      const auto column = [&](int64_t w, Vector<A>* u) __attribute__((always_inline)) {
        Vector<A> d[4];
#pragma GCC unroll 4
        for (int64_t r = 0; r < 4; ++r) {
          const bool inside = top + r >= 0 && top + r < s.H && w >= 0 && w < s.W;
          d[r] = inside ? load_up_to(pixel<T>(args.x, n, top + r, w) + c + v, channels) : Vector<A>{};
        }
        transform_pixels<A>(d, u);
      };
      A* to = out + (row - row0) * blocks.length * columns + v;
      Vector<A> u[4][4];  // [column of the block][product down]
      column(-s.pad_w, u[0]);
      column(1 - s.pad_w, u[1]);
      for (int64_t i = 0; i < blocks.length; ++i, to += columns) {
        column(2 * i + 2 - s.pad_w, u[2]);
        column(2 * i + 3 - s.pad_w, u[3]);
#pragma GCC unroll 4
        for (int a = 0; a < 4; ++a) {
          const Vector<A> across[4] = {u[0][a], u[1][a], u[2][a], u[3][a]};
          Vector<A> w[4];
          transform_pixels<A>(across, w);
#pragma GCC unroll 4
          for (int b = 0; b < 4; ++b) store(to + (4 * a + b) * product, w[b]);
          u[0][a] = u[2][a];
          u[1][a] = u[3][a];
        }
      }
    }
  }
}

template <typename A>
inline void transform_grads(Vector<A> y0, Vector<A> y1, Vector<A>* out) {
  out[0] = y0;
  out[1] = y0 + y1;
  out[2] = y0 - y1;
  out[3] = y1;
}

// grad_z of the block's k panels: out[k panel][product][block][kRows].
template <typename T>
inline void transform_grad_z(const WeightGradient& args, const WeightBlock& block, Accum<T>* out) {
  using A = Accum<T>;
  constexpr int64_t L = kLanes<A>;
  const ConvShape& s = args.shape;
  const PixelBlocks blocks(s);
  const int64_t product = (block.row1 - block.row0) * blocks.length * kRows;
  for (int64_t row = block.row0; row < block.row1; ++row)
    for (int64_t i = 0; i < blocks.length; ++i, out += kRows) {
      const int64_t n = row / blocks.lines, p = row % blocks.lines * 2, q = 2 * i;
      const T* const from = pixel<T>(args.grad_z, n, p, q);
      A* to = out;
      for (int64_t panel = block.k0; panel < block.k1; ++panel, to += kProducts * product) {
        const int64_t begin = channels_before(s.K, panel), end = channels_before(s.K, panel + 1);
        for (int64_t k = begin; k < end; k += L) {
          const int64_t channels = smaller(L, end - k);
          const auto at = [&](int64_t r, int64_t t) {
            const bool inside = p + r < s.P() && q + t < s.Q();
            const T* const z = from + r * args.grad_z.stride_h + t * args.grad_z.stride_w + k;
            return inside ? load_up_to(z, channels) : Vector<A>{};
          };
          Vector<A> left[4], right[4];
          transform_grads<A>(at(0, 0), at(1, 0), left);
          transform_grads<A>(at(0, 1), at(1, 1), right);
#pragma GCC unroll 4
          for (int a = 0; a < 4; ++a) {
            Vector<A> y[4];
            transform_grads<A>(left[a], right[a], y);
#pragma GCC unroll 4
            for (int b = 0; b < 4; ++b) store_up_to(to + (4 * a + b) * product + k - begin, y[b], channels);
          }
        }
      }
    }
}

template <typename T>
void weight_gradient_winograd(const WeightGradient& args, const WeightBlock& block, const WeightScratch& scratch,
                              const WeightSums& sums, bool first) {
  using A = Accum<T>;
  constexpr int64_t columns = kColumns<A>;
  const ConvShape& s = args.shape;
  const int64_t count = (block.row1 - block.row0) * PixelBlocks(s).length;
  A *const strip = static_cast<A*>(scratch.strip), *const grad = static_cast<A*>(scratch.grad);
  transform_grad_z<T>(args, block, grad);
  scratch.row_offset[0] = 0;
  for (int64_t panel = block.c0; panel < block.c1; ++panel) {
    const int64_t c = panel * columns;
    transform_inputs<T>(args, block.row0, block.row1, c, strip);
    for (int64_t product = 0; product < kProducts; ++product)
      for (int64_t k = block.k0; k < block.k1; ++k) {
        const int64_t height = channels_before(s.K, k + 1) - channels_before(s.K, k);
        const auto multiply = s.C - c > kLanes<A> ? PixelProduct<T>::template multiply<2>(height)
                                                  : PixelProduct<T>::template multiply<1>(height);
        multiply_chains<A>(multiply,
                           {grad + ((k - block.k0) * kProducts + product) * count * kRows,
                            strip + product * count * columns, scratch.row_offset, 1, count, columns},
                           kBlockChain,
                           static_cast<A*>(sums.data) + panel * sums.stride_c_panel + product * sums.stride_tap +
                               k * sums.stride_k_panel,
                           sums.stride_row, first);
      }
  }
}

template <typename A>
inline void transform_sums(Vector<A> m0, Vector<A> m1, Vector<A> m2, Vector<A> m3, Vector<A>* g) {
  const Vector<A> half = broadcast<A>((A)0.5), both = half * (m1 + m2);
  g[0] = m0 + both;
  g[1] = half * (m1 - m2);
  g[2] = both + m3;
}

// weight_finish (weight.inl). False if something is not finite: infinities whose difference was taken must be computed
// by the definition.
template <typename T>
bool weight_finish_winograd(const WeightGradient& args, const WeightSums& sums, int64_t count, int64_t stride,
                            int64_t k0, int64_t k1, const WeightOutput& grad_weight) {
  using A = Accum<T>;
  constexpr int64_t columns = kColumns<A>, L = kLanes<A>;
  const ConvShape& s = args.shape;
  Vector<A> check = {};  // zero or NaN
  for (int64_t panel = k0; panel < k1; ++panel)
    for (int64_t k = channels_before(s.K, panel), row = 0; k < channels_before(s.K, panel + 1); ++k, ++row)
      for (int64_t c = 0; c < s.C; c += L) {
        const A* const from = static_cast<const A*>(sums.data) + c / columns * sums.stride_c_panel +
                              panel * sums.stride_k_panel + row * sums.stride_row + c % columns;
        Vector<A> across[4][3];  // [product down][tap across]
        for (int a = 0; a < 4; ++a) {
          Vector<A> m[4];
          for (int b = 0; b < 4; ++b) {
            const A* const p = from + (4 * a + b) * sums.stride_tap;
            m[b] = load(p);
            for (int64_t i = 1; i < count; ++i) m[b] += load(p + i * stride);
          }
          transform_sums<A>(m[0], m[1], m[2], m[3], across[a]);
        }
        const int64_t left = smaller(L, s.C - c);
        T* const out = static_cast<T*>(grad_weight.data) + k * grad_weight.stride_k + c * grad_weight.stride_c;
        for (int t = 0; t < 3; ++t) {
          Vector<A> g[3];
          transform_sums<A>(across[0][t], across[1][t], across[2][t], across[3][t], g);
          for (int r = 0; r < 3; ++r) {
            check += g[r] - g[r];
            T* const to = out + r * grad_weight.stride_r + t * grad_weight.stride_s;
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
