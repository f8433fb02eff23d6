// The register-blocked product of a weight gradient: rows and columns of a block per instruction set.

// Inlined into a large function, the accumulators of a loop would be spilled.
#define IK_OUT_OF_LINE __attribute__((noinline))

#if defined(IK_TRAINING_TILES)
constexpr int kRows = 32;
#elif IK_VECTOR_BYTES == 64
constexpr int kRows = 14;
#else
constexpr int kRows = 6;
#endif
constexpr int kColumnVectors = 2;
template <typename A>
constexpr int64_t kColumns = kColumnVectors * kLanes<A>;

template <int... heights>
struct Heights {};
template <int height, int... above>
struct HeightsUpTo : HeightsUpTo<height - 1, height, above...> {};
template <int... heights>
struct HeightsUpTo<0, heights...> {
  using Type = Heights<heights...>;
};

// Output channels before k panel `panel`: blocks are of equal height but for one row, so that few are mostly empty.
inline int64_t channels_before(int64_t K, int64_t panel) {
#if defined(IK_TRAINING_TILES)
  return smaller(K, panel * kRows);
#else
  return K * panel / ceil_div(K, kRows);
#endif
}

// Pixel (row, i) of the left-hand side lies at a + (row * count + i) * kRows, of the right-hand side at
// b + row_offset[row] + i * step.
template <typename A>
struct PixelPairs {
  const A* a;
  const A* b;
  const int64_t* row_offset;
  int64_t rows, count, step;
};

// out [height][vectors * lanes], rows `out_row` elements apart, (+)= sum over pixels of a[pixel][row] *
// b[pixel][column].
template <typename A, int height, int vectors>
IK_OUT_OF_LINE void multiply_pixels(const PixelPairs<A>& pixels, A* out, int64_t out_row, bool first) {
  constexpr int64_t L = kLanes<A>;
  Vector<A> sum[height][vectors] = {};
  const A* a = pixels.a;
  for (int64_t row = 0; row < pixels.rows; ++row) {
    const A* p = pixels.b + pixels.row_offset[row];
#pragma GCC unroll 1
    for (int64_t i = 0; i < pixels.count; ++i, p += pixels.step, a += kRows) {
      Vector<A> b[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) b[v] = load(p + v * L);
#pragma GCC unroll 16
      for (int j = 0; j < height; ++j) {
        const Vector<A> value = broadcast<A>(a[j]);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) accumulate(sum[j][v], value, b[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < height; ++j) {
    A* o = out + j * out_row;
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(o + v * L, first ? sum[j][v] : load(o + v * L) + sum[j][v]);
  }
}

template <typename A>
using MultiplyPixels = void (*)(const PixelPairs<A>&, A*, int64_t, bool);

// The kernel for blocks of this height and so many vectors of columns.
template <typename A, int vectors, int... heights>
inline MultiplyPixels<A> multiply_pixels_of(int64_t height, Heights<heights...>) {
  static constexpr MultiplyPixels<A> kTable[] = {multiply_pixels<A, heights, vectors>...};
  return kTable[height - 1];
}

// The same in sums of at most about `chain` pixels, which are added up: a longer chain would lose digits.
template <typename A>
inline void multiply_chains(MultiplyPixels<A> multiply, const PixelPairs<A>& pixels, int64_t chain, A* out,
                            int64_t out_row, bool first) {
  const bool one_row = pixels.rows == 1;
  const int64_t cut = one_row ? pixels.count : pixels.rows;
  const int64_t chains = smaller(cut, ceil_div(pixels.rows * pixels.count, chain));
  for (int64_t i = 0; i < chains; ++i) {
    const int64_t begin = cut * i / chains, length = cut * (i + 1) / chains - begin;
    PixelPairs<A> part = pixels;
    if (one_row) {
      part.a += begin * kRows;
      part.b += begin * pixels.step;
      part.count = length;
    } else {
      part.a += begin * pixels.count * kRows;
      part.row_offset += begin;
      part.rows = length;
    }
    multiply(part, out, out_row, first && i == 0);
  }
}
