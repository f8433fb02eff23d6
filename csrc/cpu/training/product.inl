// The register-blocked product of a weight gradient: rows and columns of a block per instruction set.

// Inlined into a large function, the accumulators of a loop would be spilled.
#define IK_OUT_OF_LINE __attribute__((noinline))

#if defined(IK_TRAINING_TILES)
constexpr int kRows = 32;
#elif IK_VECTOR_BYTES == 64
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif
constexpr int kColumnVectors = 2;
template <typename A>
constexpr int64_t kColumns = kColumnVectors * kLanes<A>;

// out [kRows][kColumns], rows `out_row` elements apart, (+)= sum over pixels of a[pixel][row] * b[pixel][column]; pixel
// (row, i) of b lies at row_offset[row] + i * step.
template <typename A>
IK_OUT_OF_LINE void multiply_pixels(const A* a, const A* b, const int64_t* row_offset, int64_t rows, int64_t count,
                                    int64_t step, A* out, int64_t out_row, bool first) {
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
    A* o = out + j * out_row;
    store(o, first ? sum[j][0] : load(o) + sum[j][0]);
    store(o + L, first ? sum[j][1] : load(o + L) + sum[j][1]);
  }
}
