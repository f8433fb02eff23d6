// The product of a weight gradient in bf16, two pixels at a time.

using Pair = uint32_t;  // the lower half belongs to the first pixel

inline BitsVector load_pairs(const Pair* p) {
  BitsVector v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline void accumulate(FloatVector& sum, BitsVector a, BitsVector b) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

// multiply_pixels (product.inl): pair i of a row lies at a + (row * ceil(count / 2) + i) * kRows on the left, and on
// the right the pixels 2 i and 2 i + 1 at b + row_offset[row] + 2 i * step. A last pixel alone has no partner on the
// right.
template <int height, int vectors>
IK_OUT_OF_LINE void multiply_pairs(const PixelPairs<Pair>& pixels, float* out, int64_t out_row, bool first) {
  constexpr int64_t L = kLanes<float>;
  FloatVector sum[height][vectors] = {};
  const Pair* a = pixels.a;
  for (int64_t row = 0; row < pixels.rows; ++row) {
    const Pair* p = pixels.b + pixels.row_offset[row];
    const auto step = [&](Pair kept) __attribute__((always_inline)) {
      BitsVector b[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) b[v] = load_pairs(p + v * L) & (BitsVector{} + kept);
#pragma GCC unroll 16
      for (int j = 0; j < height; ++j) {
        const BitsVector value = BitsVector{} + a[j];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) accumulate(sum[j][v], value, b[v]);
      }
    };
#pragma GCC unroll 1
    for (int64_t i = 1; i < pixels.count; i += 2, p += 2 * pixels.step, a += kRows) step(~Pair{0});
    if (pixels.count % 2 != 0) {
      step(0xffff);
      a += kRows;
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < height; ++j) {
    float* o = out + j * out_row;
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(o + v * L, first ? sum[j][v] : load(o + v * L) + sum[j][v]);
  }
}

using MultiplyPairs = void (*)(const PixelPairs<Pair>&, float*, int64_t, bool);

template <int vectors, int... heights>
inline MultiplyPairs multiply_pairs_of(int64_t height, Heights<heights...>) {
  static constexpr MultiplyPairs kTable[] = {multiply_pairs<heights, vectors>...};
  return kTable[height - 1];
}

template <typename T>
struct PairProduct {
  using Operand = Pair;

  static int64_t pack_grad(const WeightGradient& args, const WeightBlock& block, int64_t rows, int64_t count,
                           Pair* out) {
    constexpr int64_t group = 4;  // pairs whose lines are read and written together
    const int64_t P = args.shape.P(), Q = args.shape.Q(), K = args.shape.K;
    const int64_t pairs = ceil_div(count, 2), panel_grad = rows * pairs * kRows;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < pairs; i += group) {
        const int64_t left = smaller(group, pairs - i);
        const Bf16* at[group][2];
        for (int64_t j = 0; j < left; ++j)
          for (int64_t half = 0; half < 2; ++half) {
            // A long row is all rows of the block.
            const int64_t within = 2 * (i + j) + half, m = row * count + within, line = block.row0 + m / Q;
            at[j][half] = within < count ? pixel<Bf16>(args.grad_z, line / P, line % P, m % Q) : nullptr;
          }
        Pair* to = out + (row * pairs + i) * kRows;
        for (int64_t panel = block.k0; panel < block.k1; ++panel, to += panel_grad) {
          const int64_t k = channels_before(K, panel), height = channels_before(K, panel + 1) - k;
          for (int64_t j = 0; j < left; ++j) {
            const BitsVector low = channel_bits(at[j][0] + k, height);
            const BitsVector high = at[j][1] ? channel_bits(at[j][1] + k, height) : BitsVector{};
            store_first((float*)(to + j * kRows), (FloatVector)(low | high << 16), height);
          }
        }
      }
    return panel_grad;
  }

  // Every element with that of the next pixel, where a window's step leads; of a long row every second pixel.
  static const Pair* right(const RightPanel<float>& panel, const PanelTaps& taps, bool joined,
                           const WeightScratch& scratch) {
    constexpr int64_t L = kLanes<float>, columns = kColumns<float>;
    Pair* const out = static_cast<Pair*>(scratch.pairs);
    const int64_t ahead = taps.step, step = joined ? 2 * ahead : columns;
    const int64_t paired = larger(0, panel.elements - ahead);
    int64_t i = 0;
    for (; i < paired; i += step)
      for (int64_t j = i; j < i + columns; j += L)
        store_pair(out + j, rounded(panel.data + j), rounded(panel.data + j + ahead));
    for (; i < panel.elements; i += step)
      for (int64_t j = i; j < i + columns; j += L) store_pair(out + j, rounded(panel.data + j), BitsVector{});
    return out;
  }

  template <int vectors>
  static MultiplyPairs multiply(int64_t height) {
    return multiply_pairs_of<vectors>(height, typename HeightsUpTo<kRows>::Type{});
  }
  // The operands were rounded to bf16: a chain over the whole chunk loses nothing that counts.
  static void run(MultiplyPairs multiply, const PixelPairs<Pair>& pixels, float* out, int64_t out_row, bool first) {
    multiply(pixels, out, out_row, first);
  }

 private:
  static void store_pair(Pair* out, BitsVector first, BitsVector second) {
    const BitsVector pair = first | second << 16;
    __builtin_memcpy(out, &pair, sizeof(pair));
  }
  static BitsVector channel_bits(const Bf16* p, int64_t n) {
    return (BitsVector)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
  }
  static BitsVector rounded(const float* p) {
    return (BitsVector)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(load(p)));
  }
};
