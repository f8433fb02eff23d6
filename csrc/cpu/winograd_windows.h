// The windows that Winograd's algorithm computes, and in which blocks.
#pragma once
#include <type_traits>

#include "cpu/winograd.h"

namespace ik::cpu::IK_ISA {

// The first of the ways that applies.
template <typename T, typename... Ways>
struct AnyWinograd {
  static bool applies(const Geometry& g) { return (Ways::applies(g) || ...); }
  static size_t weight_bytes(const Geometry& g) {
    size_t bytes = 0;
    visit(g, [&](auto way) { bytes = decltype(way)::type::weight_bytes(g); });
    return bytes;
  }
  static void pack(const Geometry& g, const WeightView& w, void* packed, int64_t panel_begin, int64_t panel_end) {
    visit(g, [&](auto way) { decltype(way)::type::pack(g, w, packed, panel_begin, panel_end); });
  }
  static int64_t rows(const Geometry& g) {
    int64_t rows = 0;
    visit(g, [&](auto way) { rows = decltype(way)::type::rows(g); });
    return rows;
  }
  static int64_t tile_rows(const Geometry& g, int64_t tile_bytes) {
    int64_t rows = 0;
    visit(g, [&](auto way) { rows = decltype(way)::type::tile_rows(g, tile_bytes); });
    return rows;
  }
  static void tile(const ConvTask& task, const Tile& part) {
    visit(task.geometry, [&](auto way) { decltype(way)::type::tile(task, part); });
  }
  static int64_t band_rows(const Geometry& g) {
    int64_t rows = 1;
    visit(g, [&](auto way) { rows = decltype(way)::type::kHeight; });
    return rows;
  }
  static bool is_large(const Geometry& g) {
    bool large = false;
    visit(g, [&](auto way) { large = decltype(way)::type::kLarge; });
    return large;
  }
  // Panel q of packed weights as pack_columns writes it.
  static void restore(const Geometry& g, const void* packed, int64_t q, Operand<T>* out) {
    visit(g, [&](auto way) { decltype(way)::type::restore(g, packed, q, out); });
  }
  static bool packs_panels(const Geometry& g, int64_t tile_rows) {
    bool packs = false;
    visit(g, [&](auto way) { packs = decltype(way)::type::packs_panels(g, tile_rows); });
    return packs;
  }

 private:
  template <typename Body>
  static void visit(const Geometry& g, const Body& body) {
    const auto one = [&](auto way) {
      const bool applies = decltype(way)::type::applies(g);
      if (applies) body(way);
      return applies;
    };
    (one(std::type_identity<Ways>{}) || ...);
  }
};

// Transformed weights of more would take longer to read than the larger blocks save, or than any do.
constexpr int64_t kFewWeights = 1 << 14, kManyWeights = 1 << 16;

// Blocks so large that they cost digits, but none that a result of 16 bits has: of float32's 24 bits four are lost.
template <typename T, bool kNarrow = sizeof(T) == 2>
struct WinogradWindows : AnyWinograd<T, Winograd<T, CookToom<6, 3>, CookToom<6, 3>, kFewWeights>,
                                     Winograd<T, CookToom<4, 3>, CookToom<4, 3>, kManyWeights>,
                                     Winograd<T, CookToom<1, 1>, CookToom<6, 7>, kManyWeights>,
                                     Winograd<T, CookToom<6, 7>, CookToom<1, 1>, kManyWeights>,
                                     Winograd<T, CookToom<4, 5>, CookToom<4, 5>, kFewWeights>> {};
// Of less than twice the error of PyTorch's channels-last convolution. That grows with the channels, which are added up
// in long chains, and the error of large blocks hardly does: with fewer channels they would have more. The deepest sums
// are left to smaller blocks or the definition, for those who compare with the contiguous format, which adds in blocks.
template <typename T, typename Down, typename Across, int64_t kLeastChannels>
using LargeWinograd = Winograd<T, Down, Across, kManyWeights, kLeastChannels, 256>;
template <typename T>
using LargeWinograd3x3 = LargeWinograd<T, CookToom<4, 3>, CookToom<4, 3>, 64>;
template <typename T>
using SmallWinograd3x3 = Winograd<T, CookToom<2, 3>, CookToom<2, 3>, kManyWeights>;
template <typename T>
struct WinogradWindows<T, false>
    : AnyWinograd<T, LargeWinograd3x3<T>, SmallWinograd3x3<T>, LargeWinograd<T, CookToom<1, 1>, CookToom<2, 7>, 128>,
                  LargeWinograd<T, CookToom<2, 7>, CookToom<1, 1>, 128>,
                  LargeWinograd<T, CookToom<2, 5>, CookToom<2, 5>, 32>> {};

}  // namespace ik::cpu::IK_ISA
