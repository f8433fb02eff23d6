// Strips: one panel of channels of a rectangle of pixels, widened, activated and zero padded, [y][x][kColumns].

template <typename T, Activation kind>
inline void pack_strip_as(const NhwcInput& x, int64_t n, int64_t H, int64_t W, int64_t C, int64_t c, int64_t y0,
                          int64_t rows, int64_t x0, int64_t cols, Accum<T>* out) {
  using A = Accum<T>;
  constexpr int64_t L = kLanes<A>, columns = kColumns<A>;
  const int64_t left = C - c;
  const int64_t inside0 = smaller(cols, larger(0, -x0)), inside1 = larger(inside0, smaller(cols, W - x0));
  for (int64_t y = 0; y < rows; ++y) {
    A* row = out + y * cols * columns;
    const bool inside = y0 + y >= 0 && y0 + y < H;
    const int64_t first = inside ? inside0 : cols, last = inside ? inside1 : cols;
    for (int64_t i = 0; i < first * columns; i += L) store(row + i, Vector<A>{});
    for (int64_t i = last * columns; i < cols * columns; i += L) store(row + i, Vector<A>{});
    if (first >= last) continue;
    const T* p = pixel<T>(x, n, y0 + y, x0 + first) + c;
    A* o = row + first * columns;
    if (left >= columns) {
      for (int64_t i = first; i < last; ++i, p += x.stride_w, o += columns) {
        store(o, activate<kind, A>(load(p)));
        store(o + L, activate<kind, A>(load(p + L)));
      }
    } else {
      for (int64_t i = first; i < last; ++i, p += x.stride_w, o += columns) {
        store(o, activate<kind, A>(load_up_to(p, left)));
        store(o + L, left > L ? activate<kind, A>(load_first(p + L, left - L)) : Vector<A>{});
      }
    }
  }
}

// Channels [c, c + kColumns) of rows [y0, y0 + rows), columns [x0, x0 + cols) of image n; zero outside [0, H) x [0, W).
template <typename T>
inline void pack_strip(const NhwcInput& x, Activation activation, int64_t n, int64_t H, int64_t W, int64_t C, int64_t c,
                       int64_t y0, int64_t rows, int64_t x0, int64_t cols, Accum<T>* out) {
  with_activation(activation,
                  [&](auto tag) { pack_strip_as<T, decltype(tag)::value>(x, n, H, W, C, c, y0, rows, x0, cols, out); });
}

template <typename T>
void pack_depthwise(const ConvShape& shape, const WeightView& weight, const void* bias, void* packed) {
  using A = Accum<T>;
  constexpr int64_t columns = kColumns<A>;
  A* out = static_cast<A*>(packed);
  for (int64_t c0 = 0; c0 < shape.C; c0 += columns) {
    for (int64_t r = 0; r < shape.R; ++r)
      for (int64_t s = 0; s < shape.S; ++s, out += columns)
        for (int64_t j = 0; j < columns; ++j) {
          const int64_t at = (c0 + j) * weight.stride_k + r * weight.stride_r + s * weight.stride_s;
          out[j] = c0 + j < shape.C ? to_accum(static_cast<const T*>(weight.data)[at]) : (A)0;
        }
    for (int64_t j = 0; j < columns; ++j)
      out[j] = bias && c0 + j < shape.C ? static_cast<const A*>(bias)[c0 + j] : (A)0;
    out += columns;
  }
}

// out[i] = start + sum over t of weight[t] * strip[i * step + offset[t]] for i in [0, count).
template <typename A>
IK_OUT_OF_LINE void tap_sum(const A* strip, const int64_t* offset, int64_t taps, const A* weight, const A* start,
                            int64_t count, int64_t step, A* out) {
  constexpr int64_t L = kLanes<A>, columns = kColumns<A>;
  constexpr int group = 4;
  const Vector<A> start0 = start ? load(start) : Vector<A>{}, start1 = start ? load(start + L) : Vector<A>{};
  int64_t i = 0;
  for (; i + group <= count; i += group) {
    Vector<A> sum[group][2];
#pragma GCC unroll 4
    for (int j = 0; j < group; ++j) sum[j][0] = start0, sum[j][1] = start1;
    for (int64_t t = 0; t < taps; ++t) {
      const A* p = strip + i * step + offset[t];
      const Vector<A> w0 = load(weight + t * columns), w1 = load(weight + t * columns + L);
#pragma GCC unroll 4
      for (int j = 0; j < group; ++j) {
        sum[j][0] += load(p + j * step) * w0;
        sum[j][1] += load(p + j * step + L) * w1;
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < group; ++j) {
      store(out + (i + j) * columns, sum[j][0]);
      store(out + (i + j) * columns + L, sum[j][1]);
    }
  }
  for (; i < count; ++i) {
    Vector<A> sum0 = start0, sum1 = start1;
    for (int64_t t = 0; t < taps; ++t) {
      const A* p = strip + i * step + offset[t];
      sum0 += load(p) * load(weight + t * columns);
      sum1 += load(p + L) * load(weight + t * columns + L);
    }
    store(out + i * columns, sum0);
    store(out + i * columns + L, sum1);
  }
}

// sum[t] += sum over i of grad[i] * strip[i * step + offset[t]] for `taps` taps.
template <int taps, typename A>
IK_OUT_OF_LINE void tap_gradient(const A* grad, const A* strip, const int64_t* offset, int64_t count, int64_t step,
                                 A* sum) {
  constexpr int64_t L = kLanes<A>, columns = kColumns<A>;
#pragma GCC unroll 2
  for (int half = 0; half < kColumnVectors; ++half) {
    Vector<A> sums[taps];
#pragma GCC unroll 9
    for (int t = 0; t < taps; ++t) sums[t] = load(sum + t * columns + half * L);
    for (int64_t i = 0; i < count; ++i) {
      const Vector<A> g = load(grad + i * columns + half * L);
#pragma GCC unroll 9
      for (int t = 0; t < taps; ++t) sums[t] += g * load(strip + i * step + offset[t] + half * L);
    }
#pragma GCC unroll 9
    for (int t = 0; t < taps; ++t) store(sum + t * columns + half * L, sums[t]);
  }
}
