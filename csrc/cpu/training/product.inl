// Register-blocked products. Rows and columns of a block per instruction set; columns are a multiple of the vector.

#if IK_VECTOR_BYTES == 64
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif
constexpr int kColumnVectors = 2;
template <typename A>
constexpr int64_t kColumns = kColumnVectors * kLanes<A>;

// out [kRows][kColumns] (+)= sum over k of a[k][row] * b[k][column]; a is stored [k block][kRows][lanes].
template <typename A>
inline void multiply_block(const A* a, const A* b, int64_t blocks, A* out, bool first) {
  constexpr int64_t L = kLanes<A>;
  Vector<A> sum[kRows][kColumnVectors] = {};
  for (int64_t block = 0; block < blocks; ++block, a += kRows * L) {
#pragma GCC unroll 1
    for (int64_t k = 0; k < L; ++k, b += kColumns<A>) {
      const Vector<A> b0 = load(b), b1 = load(b + L);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vector<A> value = broadcast<A>(a[i * L + k]);
        sum[i][0] += value * b0;
        sum[i][1] += value * b1;
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    A* o = out + i * kColumns<A>;
    store(o, first ? sum[i][0] : load(o) + sum[i][0]);
    store(o + L, first ? sum[i][1] : load(o + L) + sum[i][1]);
  }
}

// Sums of bounded length, then their sum: the rounding error of a long reduction stays that of a short one.
template <typename A>
inline void multiply_rows(const A* a, const A* b, int64_t blocks, A* out) {
  constexpr int64_t L = kLanes<A>, most = 512 / L;
  int64_t done = 0;
  do {
    const int64_t count = smaller(most, blocks - done);
    multiply_block(a + done * kRows * L, b + done * L * kColumns<A>, count, out, done == 0);
    done += count;
  } while (done < blocks);
}

// out [kRows][kColumns] (+)= sum over pixels of a[pixel][row] * b[pixel][column]; pixel (row, i) of b lies at
// row_offset[row] + i * step.
template <typename A>
inline void multiply_pixels(const A* a, const A* b, const int64_t* row_offset, int64_t rows, int64_t count,
                            int64_t step, A* out, bool first) {
  constexpr int64_t L = kLanes<A>;
  Vector<A> sum[kRows][kColumnVectors] = {};
  for (int64_t row = 0; row < rows; ++row) {
    const A* p = b + row_offset[row];
#pragma GCC unroll 1
    for (int64_t i = 0; i < count; ++i, p += step, a += kRows) {
      const Vector<A> b0 = load(p), b1 = load(p + L);
#pragma GCC unroll 16
      for (int j = 0; j < kRows; ++j) {
        const Vector<A> value = broadcast<A>(a[j]);
        sum[j][0] += value * b0;
        sum[j][1] += value * b1;
      }
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kRows; ++j) {
    A* o = out + j * kColumns<A>;
    store(o, first ? sum[j][0] : load(o) + sum[j][0]);
    store(o + L, first ? sum[j][1] : load(o + L) + sum[j][1]);
  }
}

template <typename T>
void pack_taps(const WeightView& weight, int64_t K, int64_t C, int64_t taps, const int64_t* tap_r, const int64_t* tap_s,
               int64_t panel0, int64_t panel1, void* packed) {
  using A = typename AccumulatorOf<T>::Type;
  constexpr int64_t columns = kColumns<A>;
  const int64_t padded = ceil_div(K, kLanes<A>) * kLanes<A>;
  for (int64_t panel = panel0; panel < panel1; ++panel)
    for (int64_t t = 0; t < taps; ++t) {
      const T* w = static_cast<const T*>(weight.data) + tap_r[t] * weight.stride_r + tap_s[t] * weight.stride_s;
      A* out = static_cast<A*>(packed) + (panel * taps + t) * padded * columns;
      const int64_t c0 = panel * columns, count = smaller(columns, C - c0);
      for (int64_t k = 0; k < padded; ++k, out += columns)
        for (int64_t j = 0; j < columns; ++j)
          out[j] = k < K && j < count ? widen(w[k * weight.stride_k + (c0 + j) * weight.stride_c]) : (A)0;
    }
}

// One row of a packed panel: `count` values of p (null = zeros), padded with zeros to `blocks` vectors.
template <typename T>
inline void pack_row(const T* p, int64_t count, int64_t blocks, typename AccumulatorOf<T>::Type* out) {
  using A = typename AccumulatorOf<T>::Type;
  constexpr int64_t L = kLanes<A>;
  if (p == nullptr) {
    for (int64_t b = 0; b < blocks; ++b) store(out + b * kRows * L, Vector<A>{});
    return;
  }
  const int64_t full = count / L;
  for (int64_t b = 0; b < full; ++b) store(out + b * kRows * L, load(p + b * L));
  if (full < blocks) store(out + full * kRows * L, load_first(p + full * L, count - full * L));
}

template <typename T>
void tap_product(const TapProduct& args, int64_t m0, int64_t m1, void* scratch) {
  using A = typename AccumulatorOf<T>::Type;
  constexpr int64_t L = kLanes<A>, columns = kColumns<A>;
  const int64_t blocks = ceil_div(args.in_c, L), depth = args.taps * blocks, panels = ceil_div(m1 - m0, kRows);
  A* rows = static_cast<A*>(scratch);

  // Gather the input rows of every tap.
  for (int64_t i = 0; i < panels * kRows; ++i) {
    const int64_t m = m0 + i, row = m / args.out_w, x = m % args.out_w, n = row / args.out_h, y = row % args.out_h;
    A* out = rows + (i / kRows) * depth * kRows * L + (i % kRows) * L;
    for (int64_t t = 0; t < args.taps; ++t, out += blocks * kRows * L) {
      const int64_t h = y + args.tap_y[t], w = x + args.tap_x[t];
      const bool inside = m < m1 && h >= 0 && h < args.in_h && w >= 0 && w < args.in_w;
      pack_row(inside ? pixel<T>(args.in, n, h, w) : nullptr, args.in_c, blocks, out);
    }
  }

  alignas(64) A block[kRows * columns];
  for (int64_t c = 0; c < args.out_c; c += columns) {
    const A* b = static_cast<const A*>(args.packed) + c * depth * L;
    const int64_t left = args.out_c - c;
    for (int64_t panel = 0; panel < panels; ++panel) {
      multiply_rows(rows + panel * depth * kRows * L, b, depth, block);
      const int64_t first = m0 + panel * kRows, last = smaller(m1, first + kRows);
      for (int64_t m = first; m < last; ++m) {
        const int64_t row = m / args.out_w;
        T* out = pixel<T>(args.out, row / args.out_h, row % args.out_h, m % args.out_w) + c;
        const A* values = block + (m - first) * columns;
        store_up_to(out, load(values), left);
        if (left > L) store_up_to(out + L, load(values + L), left - L);
      }
    }
  }
}
