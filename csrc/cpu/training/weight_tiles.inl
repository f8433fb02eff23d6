// The weight gradient with AMX: 32 output channels x 32 input channels a block, pixels as the reduction.
//   A: [k panel][32 pixels][2 tiles][16 output channels][32 pixels], grad_z transposed
//   B: [32 pixels][2 tiles][16 pairs of pixels][16 channels][2]

constexpr int64_t kTilePixels = 32;
constexpr int64_t kTileElements = 512;

// 16 x 16 transpose of 32-bit elements.
inline void transpose(__m512i (&v)[16]) {
  __m512i t[16], u[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i even0 = _mm512_shuffle_i32x4(u[i], u[4 + i], 0x88), odd0 = _mm512_shuffle_i32x4(u[i], u[4 + i], 0xdd);
    const __m512i even1 = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0x88);
    const __m512i odd1 = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0xdd);
    v[i] = _mm512_shuffle_i32x4(even0, even1, 0x88);
    v[4 + i] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
    v[8 + i] = _mm512_shuffle_i32x4(even0, even1, 0xdd);
    v[12 + i] = _mm512_shuffle_i32x4(odd0, odd1, 0xdd);
  }
}

// The first n (any integer) of 16 channels as 32-bit elements.
inline __m512i load_channels(const Bf16* p, int64_t n) {
  if (p == nullptr || n <= 0) return _mm512_setzero_si512();
  const __mmask16 mask = n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
}

inline void pack_grad_tiles(const NhwcInput& grad_z, int64_t P, int64_t Q, int64_t K, const WeightBlock& part,
                            uint16_t* out) {
  const int64_t row0 = part.row0, k0 = part.k0, k1 = part.k1, pixels = (part.row1 - row0) * Q,
                blocks = ceil_div(pixels, kTilePixels);
  for (int64_t block = 0; block < blocks; ++block) {
    const Bf16* at[kTilePixels];
    for (int64_t i = 0; i < kTilePixels; ++i) {
      const int64_t m = block * kTilePixels + i, row = row0 + m / Q;
      at[i] = m < pixels ? pixel<Bf16>(grad_z, row / P, row % P, m % Q) : nullptr;
    }
    for (int64_t k = k0 * kRows; k < k1 * kRows; k += 16) {
      __m512i v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const Bf16 *even = at[2 * i], *odd = at[2 * i + 1];
        v[i] = _mm512_or_si512(load_channels(even ? even + k : nullptr, K - k),
                               _mm512_slli_epi32(load_channels(odd ? odd + k : nullptr, K - k), 16));
      }
      transpose(v);
      uint16_t* tile = out + ((k / kRows - k0) * blocks + block) * 2 * kTileElements + k % kRows / 16 * kTileElements;
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(tile + i * kTilePixels, v[i]);
    }
  }
}

inline __m512i round_channels(const float* p) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(load(p))); }

inline void pack_pixel_pairs(const float* strip, const int64_t* offset, int64_t pixels, uint16_t* out) {
  const int64_t padded = ceil_div(pixels, kTilePixels) * kTilePixels;
  for (int64_t m = 0; m < padded; m += 2) {
    uint16_t* pair = out + m / kTilePixels * 2 * kTileElements + m % kTilePixels * 16;
    for (int half = 0; half < 2; ++half) {
      const __m512i even = m < pixels ? round_channels(strip + offset[m] + half * 16) : _mm512_setzero_si512();
      const __m512i odd = m + 1 < pixels ? round_channels(strip + offset[m + 1] + half * 16) : _mm512_setzero_si512();
      _mm512_storeu_si512(pair + half * kTileElements, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
  }
}

inline void multiply_tiles(const uint16_t* a, const uint16_t* b, int64_t blocks, float* out, int64_t out_row,
                           bool first) {
  const int64_t row_bytes = out_row * sizeof(float);
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, out, row_bytes);
    _tile_loadd(1, out + 16, row_bytes);
    _tile_loadd(2, out + 16 * out_row, row_bytes);
    _tile_loadd(3, out + 16 * out_row + 16, row_bytes);
  }
  for (int64_t block = 0; block < blocks; ++block, a += 2 * kTileElements, b += 2 * kTileElements) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + kTileElements, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + kTileElements, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, row_bytes);
  _tile_stored(1, out + 16, row_bytes);
  _tile_stored(2, out + 16 * out_row, row_bytes);
  _tile_stored(3, out + 16 * out_row + 16, row_bytes);
}

void weight_gradient_tiles(const WeightGradient& args, const WeightBlock& block, const WeightScratch& scratch,
                           const WeightSums& sums, bool first) {
  static_assert(kRows == 32 && kColumns<float> == 32);
  const ConvShape& s = args.shape;
  const int64_t Q = s.Q(), rows = block.row1 - block.row0, pixels = rows * Q;
  const int64_t blocks = ceil_div(pixels, kTilePixels);
  const PanelTaps taps = PanelTaps::of(args, 0.0f);
  uint16_t* grad = static_cast<uint16_t*>(scratch.grad);
  uint16_t* pairs = static_cast<uint16_t*>(scratch.pairs);
  int64_t* offset = scratch.row_offset + rows + s.R * s.S;
  pack_grad_tiles(args.grad_z, s.P(), Q, s.K, block, grad);
  const cpu::amx::TileScope scope;
  for (int64_t panel = block.c0; panel < block.c1; ++panel) {
    const float* strip = prepare_panel<Bf16>(args, block.row0, block.row1, panel * kColumns<float>, scratch).data;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t q = 0; q < Q; ++q) offset[row * Q + q] = scratch.row_offset[row] + q * taps.step;
    for (int64_t t = 0; t < taps.count; ++t) {
      pack_pixel_pairs(strip + taps.offset(t), offset, pixels, pairs);
      cpu::amx::compiler_barrier();
      float* out = static_cast<float*>(sums.data) + panel * sums.stride_c_panel + t * sums.stride_tap;
      for (int64_t k = block.k0; k < block.k1; ++k)
        multiply_tiles(grad + (k - block.k0) * blocks * 2 * kTileElements, pairs, blocks, out + k * sums.stride_k_panel,
                       sums.stride_row, first);
      cpu::amx::compiler_barrier();
    }
  }
}
