// The tile instructions of AMX in AVX-512, for tests on processors without them (tools/emulate_amx). A thread's tiles
// hold nothing outside of a TileScope, so that a kernel without one fails.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "cpu/intrinsics.h"

namespace ik::cpu::amx {

class EmulatedTiles {
 public:
  static EmulatedTiles& of_thread() {
    thread_local EmulatedTiles tiles;
    return tiles;
  }

  void configure() {
    require(!configured_, "a TileScope within another");
    configured_ = true;
    for (Tile& tile : tiles_)
      for (float& value : tile.value) value = std::numeric_limits<float>::quiet_NaN();
  }
  void release() {
    require(configured_, "no TileScope to end");
    configured_ = false;
  }

  void zero(int tile) { std::memset(at(tile), 0, sizeof(Tile)); }
  void load(int tile, const void* from, int64_t row_bytes) {
    for (int row = 0; row < kRows; row++)
      std::memcpy(at(tile) + row * kColumns, static_cast<const char*>(from) + row * row_bytes, kRowBytes);
  }
  void store(int tile, void* to, int64_t row_bytes) {
    for (int row = 0; row < kRows; row++)
      std::memcpy(static_cast<char*>(to) + row * row_bytes, at(tile) + row * kColumns, kRowBytes);
  }
  // c [16][16] += a [16][16 pairs] * b [16 pairs][16]: the sums of even and of odd elements, then both.
  void multiply(int c, int a, int b) {
    const __m512i odd_half = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    for (int row = 0; row < kRows; row++) {
      __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
      for (int k = 0; k < kColumns; k++) {
        const __m512i pair = _mm512_castps_si512(_mm512_set1_ps(at(a)[row * kColumns + k]));
        const __m512i pairs = _mm512_castps_si512(_mm512_loadu_ps(at(b) + k * kColumns));
        even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)),
                               _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), even);
        odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(pair, odd_half)),
                              _mm512_castsi512_ps(_mm512_and_si512(pairs, odd_half)), odd);
      }
      float* const sums = at(c) + row * kColumns;
      _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), _mm512_add_ps(even, odd)));
    }
  }

 private:
  static constexpr int kRows = 16, kColumns = 16, kRowBytes = 64;
  struct alignas(64) Tile {
    float value[kRows * kColumns];
  };

  float* at(int tile) {
    require(configured_, "a tile outside of a TileScope");
    return tiles_[tile].value;
  }
  static void require(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "emulated AMX: %s\n", what);
    std::abort();
  }

  bool configured_ = false;
  Tile tiles_[8];
};

}  // namespace ik::cpu::amx

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_zero(tile) ::ik::cpu::amx::EmulatedTiles::of_thread().zero(tile)
#define _tile_loadd(tile, from, row_bytes) ::ik::cpu::amx::EmulatedTiles::of_thread().load(tile, from, row_bytes)
#define _tile_stored(tile, to, row_bytes) ::ik::cpu::amx::EmulatedTiles::of_thread().store(tile, to, row_bytes)
#define _tile_dpbf16ps(c, a, b) ::ik::cpu::amx::EmulatedTiles::of_thread().multiply(c, a, b)
