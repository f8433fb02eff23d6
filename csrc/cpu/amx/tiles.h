// The AMX product: 32 x 32 blocks of C in four tile registers, two for A, two for B.
//   A: rows of bf16 at any constant stride: a packed panel, a padded strip, or x itself (struct Operand)
//   B: [panel of 32 columns][block of 32 k][2 tiles][16 k pairs][16 columns][2]
// A finished block waits in memory; its epilogue runs a few rows at a time inside the next block's k loop, where the
// vector ports are free.
#pragma once
#define IK_ISA amx
#include "cpu/activation.h"
#include "cpu/integers.h"
#include "cpu/kernel_table.h"
#if defined(IK_EMULATE_AMX)
#include "cpu/amx/emulated_tiles.h"
#endif

namespace ik::cpu::amx {

constexpr int64_t kRows = 32, kColumns = 32, kDepth = 32;
constexpr int64_t kBlockBytes = kDepth * kColumns * 2;  // of packed A and of packed B alike

// The tile intrinsics do not tell the compiler which memory they read.
inline void compiler_barrier() { __asm__ volatile("" ::: "memory"); }

inline void configure_tiles() {
#if defined(IK_EMULATE_AMX)
  EmulatedTiles::of_thread().configure();
#else
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; i++) {
    config.row_bytes[i] = 64;
    config.rows[i] = 16;
  }
  // gcc 12's intrinsic names only 8 bytes of the configuration as its input.
  __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
#endif
}

inline void release_tiles() {
#if defined(IK_EMULATE_AMX)
  EmulatedTiles::of_thread().release();
#else
  __asm__ volatile("tilerelease" ::: "memory");
#endif
}

// Tile registers are configured while this lives.
class TileScope {
 public:
  TileScope() { configure_tiles(); }
  ~TileScope() { release_tiles(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// Element (row m, k = 32 * (group * blocks + block) + i) of A lies at
// data + m / 32 * panel_bytes + m % 32 * row_bytes + group * group_bytes + block * block_bytes + 2 * i.
struct Operand {
  const char* data;
  int64_t panel_bytes, row_bytes;
  int64_t groups, group_bytes;
  int64_t blocks, block_bytes;
};

// A block of C on its way to y.
struct Pending {
  using Run = void (*)(Pending&, int64_t count);
  Run run = nullptr;
  const float* c = nullptr;  // [32][32]
  int64_t row = 0, rows = 0;
  const int64_t* y_offset = nullptr;  // of each row; negative = the row is no output pixel
  const int64_t* r_offset = nullptr;
  const float* scale = nullptr;  // [32]
  const float* shift = nullptr;
  Bf16* y = nullptr;  // at this block's first column
  const Bf16* residual = nullptr;
  __mmask32 mask = 0;

  void step(int64_t count) {
    if (row < rows) run(*this, count);
  }
};

template <Activation kActivation, bool kResidual>
void finish_rows(Pending& p, int64_t count) {
  const VecF scale0 = load(p.scale), scale1 = load(p.scale + 16), shift0 = load(p.shift), shift1 = load(p.shift + 16);
  const int64_t end = smaller(p.rows, p.row + count);
  for (int64_t i = p.row; i < end; i++) {
    if (p.y_offset[i] < 0) continue;
    VecF left = fmadd(load(p.c + i * kColumns), scale0, shift0);
    VecF right = fmadd(load(p.c + i * kColumns + 16), scale1, shift1);
    if constexpr (kResidual) {
      const __m512i bits = _mm512_maskz_loadu_epi16(p.mask, p.residual + p.r_offset[i]);
      left = left + widen_bf16(_mm512_castsi512_si256(bits));
      right = right + widen_bf16(_mm512_extracti64x4_epi64(bits, 1));
    }
    left = activate<kActivation>(left);
    right = activate<kActivation>(right);
    const __m512bh packed = _mm512_cvtne2ps_pbh(right.v, left.v);
    _mm512_mask_storeu_epi16(p.y + p.y_offset[i], p.mask, reinterpret_cast<const __m512i&>(packed));
  }
  p.row = end;
}

template <bool kResidual>
inline Pending::Run finisher(Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return finish_rows<Activation::kRelu, kResidual>;
    case Activation::kRelu6:
      return finish_rows<Activation::kRelu6, kResidual>;
    case Activation::kElu:
      return finish_rows<Activation::kElu, kResidual>;
    case Activation::kSilu:
      return finish_rows<Activation::kSilu, kResidual>;
    case Activation::kNone:
      break;
  }
  return finish_rows<Activation::kNone, kResidual>;
}

template <int kRowTiles, int kColumnTiles>
inline void multiply_blocks(const Operand& a, const char* panel, const char* b, Pending& pending, int64_t rows_a_step,
                            const char* ahead, int64_t lines_a_step) {
  for (int64_t group = 0; group < a.groups; group++) {
    const char* from = panel + group * a.group_bytes;
    for (int64_t block = 0; block < a.blocks; block++) {
      _tile_loadd(4, from, a.row_bytes);
      _tile_loadd(6, b, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kColumnTiles == 2) {
        _tile_loadd(7, b + kBlockBytes / 2, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kRowTiles == 2) {
        _tile_loadd(5, from + 16 * a.row_bytes, a.row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kColumnTiles == 2) _tile_dpbf16ps(3, 5, 7);
      }
      pending.step(rows_a_step);
      for (int64_t line = 0; line < lines_a_step; line++, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
      from += a.block_bytes;
      b += kBlockBytes;
    }
  }
}

// Output rows of a tile: element offsets in y and in the residual (null = none).
struct OutputRows {
  int64_t count;
  const int64_t* y;
  const int64_t* residual;
};

// Columns [panel_begin, panel_end) of act(scale * A * B + shift + residual) for all rows; needs a TileScope.
// scale and shift are padded to whole panels.
inline void multiply(const Operand& a, const void* packed_b, int64_t K, const OutputRows& rows,
                     const Epilogue& epilogue, const float* scale, const float* shift, int64_t panel_begin,
                     int64_t panel_end) {
  alignas(64) float c[2][kRows * kColumns];
  const int64_t steps = a.groups * a.blocks, rows_a_step = ceil_div(kRows, steps);
  // While a panel of B is in use, each block of rows brings its share of the next one to L2.
  const int64_t shares = ceil_div(rows.count, kRows), lines_a_step = ceil_div(kBlockBytes / 64, shares);
  Pending pending;
  int64_t flip = 0;
  compiler_barrier();
  for (int64_t q = panel_begin; q < panel_end; q++) {
    const char* b = static_cast<const char*>(packed_b) + q * steps * kBlockBytes;
    const int64_t columns = smaller(kColumns, K - q * kColumns);
    for (int64_t i = 0; i < rows.count; i += kRows) {
      const int64_t n = smaller(kRows, rows.count - i);
      const char* panel = a.data + i / kRows * a.panel_bytes;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      const int64_t share = i / kRows * steps * lines_a_step * 64;
      const bool more = q + 1 < panel_end && share < steps * kBlockBytes;
      const char* ahead = b + steps * kBlockBytes + share;
      const int64_t lines = more ? lines_a_step : 0;
      if (n > 16 && columns > 16)
        multiply_blocks<2, 2>(a, panel, b, pending, rows_a_step, ahead, lines);
      else if (n > 16)
        multiply_blocks<2, 1>(a, panel, b, pending, rows_a_step, ahead, lines);
      else if (columns > 16)
        multiply_blocks<1, 2>(a, panel, b, pending, rows_a_step, ahead, lines);
      else
        multiply_blocks<1, 1>(a, panel, b, pending, rows_a_step, ahead, lines);
      float* block = c[flip];
      flip ^= 1;
      _tile_stored(0, block, kColumns * 4);
      _tile_stored(1, block + 16, kColumns * 4);
      if (n > 16) {
        _tile_stored(2, block + 16 * kColumns, kColumns * 4);
        _tile_stored(3, block + 16 * kColumns + 16, kColumns * 4);
      }
      pending.run = rows.residual ? finisher<true>(epilogue.activation) : finisher<false>(epilogue.activation);
      pending.c = block;
      pending.row = 0;
      pending.rows = n;
      pending.y_offset = rows.y + i;
      pending.r_offset = rows.residual ? rows.residual + i : nullptr;
      pending.scale = scale + q * kColumns;
      pending.shift = shift + q * kColumns;
      pending.y = static_cast<Bf16*>(epilogue.y.data) + q * kColumns;
      pending.residual = static_cast<const Bf16*>(epilogue.residual.data) + q * kColumns;
      pending.mask = mask32(columns);
    }
  }
  pending.step(kRows);
}

}  // namespace ik::cpu::amx
