// Writes blocks of B (tiles.h) from rows of 32 k of one output channel each: a 16 x 16 transposition of k pairs per
// tile.
#pragma once
#include "cpu/amx/producers.h"

namespace ik::cpu::amx {

// rows[i] holds 16 dwords; afterwards rows[j] holds dword j of every row.
inline void transpose_dwords(__m512i rows[16]) {
  __m512i pairs[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  // fours[4 * i + j]: dword j (of every lane of 128 bits) of rows 4 * i .. 4 * i + 3
  __m512i fours[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const __m512i even_low = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xdd);
    rows[j] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    rows[4 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    rows[8 + j] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    rows[12 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
}

// row(column) gives the 32 elements of column `column` of the block, zeros where there are none.
template <typename Row>
inline void pack_block(char* block, Row row) {
  for (int64_t tile = 0; tile < 2; tile++) {
    __m512i rows[16];
    for (int64_t i = 0; i < 16; i++) rows[i] = row(tile * 16 + i);
    transpose_dwords(rows);
    for (int64_t i = 0; i < 16; i++) _mm512_storeu_si512(block + tile * kBlockBytes / 2 + i * 64, rows[i]);
  }
}

// The elements of one block of k within an output channel's weights: the same offsets for all channels.
class BlockOffsets {
 public:
  template <typename OffsetOf>
  BlockOffsets(int64_t depth, OffsetOf offset_of) : depth_(depth) {
    for (int64_t i = 0; i < depth; i++) {
      offset_[i] = offset_of(i);
      contiguous_ = contiguous_ && offset_[i] == offset_[0] + i;
    }
  }
  __m512i read(const Bf16* channel) const {
    if (contiguous_) return load_bits(channel + offset_[0], mask32(depth_));
    alignas(64) uint16_t bits[kDepth] = {};
    for (int64_t i = 0; i < depth_; i++) bits[i] = channel[offset_[i]].bits;
    return _mm512_load_si512(bits);
  }

 private:
  int64_t depth_, offset_[kDepth] = {};
  bool contiguous_ = true;
};

}  // namespace ik::cpu::amx
