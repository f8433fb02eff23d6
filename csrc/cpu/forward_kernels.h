// The kernel table of one instruction set and dtype: producer -> product -> epilogue, one tile at a time.
//
#pragma once
#include "cpu/conv_rows.h"
#include "cpu/depthwise.h"
#include "cpu/pack_columns.h"
#include "cpu/strassen.h"
#include "cpu/winograd_windows.h"

namespace ik::cpu::IK_ISA {

template <typename T>
struct ForwardKernels {
  using A = Accum<T>;
  using O = Operand<T>;
  static constexpr int64_t kMR = Gemm<O>::kMR, kNR = Gemm<O>::kNR, kLanes = Vec<O>::kLanes;
  // The tile of A shares L2 with a panel of B.
  static constexpr int64_t kTileBytes = kLanes * sizeof(O) == 64 ? 512 << 10 : 192 << 10;

  // Pairs have too few digits for sums and differences of them.
  static constexpr bool kStrassen = std::is_same_v<O, A> && Strassen<T>::kPays;
  static bool by_strassen(const Geometry& g) { return kStrassen && Strassen<T>::applies(g); }

  static int64_t window_operands(const Geometry& g) { return g.R * g.S * operands<T>(g.C); }
  static size_t columns_bytes(int64_t K, int64_t k) { return static_cast<size_t>(round_up(K, kNR) * k) * sizeof(O); }
  static size_t conv_weight_bytes(const Geometry& g) { return columns_bytes(g.K, window_operands(g)); }
  static void conv_pack(const Geometry& g, const WeightView& w, void* packed, int64_t panel_begin, int64_t panel_end) {
    const int64_t k = window_operands(g);
    for (int64_t q = panel_begin; q < panel_end; q++)
      pack_columns<T>(g, w, q * kNR, static_cast<O*>(packed) + q * k * kNR);
  }
  // Row panels of unequal height count as whole ones, so that any split at multiples of kMR is one between panels.
  static int64_t conv_rows(const Geometry& g) { return g.N * PixelLines(g, kMR).panels_of_image() * kMR; }
  static int64_t conv_tile_rows(const Geometry& g) {
    const PixelLines lines(g, kMR);
    const int64_t pixels = larger(1, lines.strip_lines(0, g.P)) * lines.width;
    const int64_t image = pixels * operands<T>(g.C) * static_cast<int64_t>(sizeof(O));
    return larger(2, kTileBytes * lines.panels_of_image() / larger(1, image)) * kMR;
  }
  static void conv_tile(const ConvTask& t, const Tile& tile) {
    const Rows<O> rows = ConvRows<T>::of(t, tile.row_begin / kMR, tile.row_end / kMR);
    multiply<T>(rows, t.weight, window_operands(t.geometry), t.geometry.K, t.epilogue, tile.panel_begin,
                tile.panel_end);
  }

  static int64_t conv_band_rows(const Geometry&) { return 1; }

  using ByWinograd = WinogradWindows<T>;
  static_assert(Gemm<A>::kMR == kMR && Gemm<A>::kNR == kNR, "its tiles are of the table's rows and panels");
  static bool by_winograd_once(const Geometry& g, int64_t images) {
    // Against products of pairs it gains less than it takes to transform weights for fewer pixels.
    constexpr int64_t kLeastPixels = std::is_same_v<O, A> ? 0 : 512;
    const bool pays = images * g.P * g.Q >= kLeastPixels;
    return pays && ByWinograd::applies(g) && !(in_large_blocks(g) && (narrow(g) || (few_values(g) && images == 1)));
  }
  // Where large blocks cost digits. PyTorch computes single images of so few values by a more accurate method than
  // others (and an image's bits do not depend on how many others there are); and where the image is narrower than the
  // window, the definition adds fewer values up, but the algorithm does not.
  static constexpr bool kRestores = std::is_same_v<T, float>;
  static bool in_large_blocks(const Geometry& g) { return kRestores && ByWinograd::is_large(g); }
  static bool few_values(const Geometry& g) { return smaller(g.C * g.H * g.W, g.K * g.P * g.Q) <= 20480; }
  static bool narrow(const Geometry& g) { return g.H < g.R || g.W < g.S; }
  static bool by_restored(const Geometry& g) { return in_large_blocks(g) && (narrow(g) || few_values(g)); }
  // Blocks that cost none, or else the definition.
  using InSmallBlocks = SmallWinograd3x3<T>;
  static int64_t restored_rows(const Geometry& g) {
    return InSmallBlocks::applies(g) ? InSmallBlocks::rows(g) : conv_rows(g);
  }
  static int64_t restored_tile_rows(const Geometry& g) {
    return InSmallBlocks::applies(g) ? InSmallBlocks::tile_rows(g, 4 * kTileBytes) : conv_tile_rows(g);
  }
  static int64_t restored_band_rows(const Geometry& g) {
    return InSmallBlocks::applies(g) ? InSmallBlocks::kHeight : conv_band_rows(g);
  }
  static void restored_tile(const ConvTask& t, const Tile& tile) {
    if (InSmallBlocks::applies(t.geometry)) return InSmallBlocks::template restored_tile<LargeWinograd3x3<T>>(t, tile);
    const Rows<O> rows = ConvRows<T>::of(t, tile.row_begin / kMR, tile.row_end / kMR);
    const int64_t k = window_operands(t.geometry), panel = k * kNR;
    O* const taps = static_cast<O*>(scratch(Scratch::kRestored, static_cast<size_t>(panel) * sizeof(O)));
    for (int64_t q = tile.panel_begin; q < tile.panel_end; q++) {
      ByWinograd::restore(t.geometry, t.weight, q, taps);
      multiply<T>(rows, taps - q * panel, k, t.geometry.K, t.epilogue, q, q + 1);  // panel 0 would lie there
    }
  }
  static constexpr ConvKernels restored(const char* counter) {
    using W = ByWinograd;
    if constexpr (!kRestores)
      return {};
    else
      return {counter,       W::weight_bytes,    W::pack, restored_rows, restored_tile_rows,
              restored_tile, restored_band_rows, nullptr};
  }

  static int64_t winograd_tile_rows(const Geometry& g) { return ByWinograd::tile_rows(g, kTileBytes); }
  static constexpr ConvKernels winograd(const char* counter) {
    using W = ByWinograd;
    return {counter, W::weight_bytes, W::pack, W::rows, winograd_tile_rows, W::tile, W::band_rows, W::packs_panels};
  }

  static int64_t separable_rows(const Geometry& g) { return g.N * g.P * g.Q; }
  static int64_t separable_panels(const Geometry& g) { return ceil_div(g.K, kNR); }
  static int64_t separable_tile_rows(const Geometry& g) {
    const int64_t fits = kTileBytes / static_cast<int64_t>(sizeof(O)) * kMR / panel_operands<O>(operands<T>(g.C));
    return larger(4, smaller(fits, 448) / kMR) * kMR;
  }
  static void separable_tile(const SeparableTask& t, const Tile& tile) {
    const int64_t k = operands<T>(t.geometry.C);
    const int64_t count = ceil_div(tile.row_end - tile.row_begin, kMR) * panel_operands<O>(k);
    O* a = static_cast<O*>(scratch(Scratch::kTile, static_cast<size_t>(count) * sizeof(O)));
    depthwise<T>(t, tile.row_begin, tile.row_end, a);
    Rows<O> rows = depthwise_rows<T>(t, tile.row_begin, tile.row_end, a);
    if (!t.unpacked)
      return multiply<T>(rows, t.pointwise, k, t.geometry.K, t.epilogue, tile.panel_begin, tile.panel_end);
    O* const packed = static_cast<O*>(scratch(Scratch::kPacked, static_cast<size_t>(k * kNR) * sizeof(O)));
    for (int64_t q = tile.panel_begin; q < tile.panel_end; q++) {
      O* const base = packed - q * k * kNR;  // panel 0 would lie there
      pointwise_pack(t.geometry, *t.unpacked, base, q, q + 1);
      multiply<T>(rows, base, k, t.geometry.K, t.epilogue, q, q + 1);
      rows.upcoming = {};  // fetched once
    }
  }
  // Of all panels each is there but for a moment: more of L2 is for the tile of A.
  static int64_t separable_packing_rows(const Geometry& g) {
    const int64_t bytes = panel_operands<O>(operands<T>(g.C)) * static_cast<int64_t>(sizeof(O));
    return larger(2, kTileBytes * 3 / 2 / bytes) * kMR;
  }

  static size_t depthwise_weight_bytes(const Geometry& g) { return DepthwiseWeight<T>::bytes(g); }
  static void depthwise_pack(const Geometry& g, const WeightView& w, void* packed) {
    DepthwiseWeight<T>::pack(g, w, packed);
  }
  static size_t pointwise_bytes(const Geometry& g) { return columns_bytes(g.K, g.C); }
  static void pointwise_pack(const Geometry& g, const WeightView& w, void* packed, int64_t panel_begin,
                             int64_t panel_end) {
    conv_pack(pointwise(g), w, packed, panel_begin, panel_end);
  }

  static constexpr SeparableKernels separable(const char* counter) {
    return {counter,          pointwise_bytes,     pointwise_pack, separable_rows,
            separable_panels, separable_tile_rows, separable_tile, separable_packing_rows};
  }

  // Beside it in L2 is half of a panel of B.
  static int64_t strassen_tile_rows(const Geometry& g) { return Strassen<T>::tile_rows(g, kTileBytes * 5 / 4); }
  static void strassen_tile(const SeparableTask& t, const Tile& tile) {
    const Geometry& g = t.geometry;
    const int64_t image = g.P * g.Q, pitch = tile_pitch<O>(g.C), panel = panel_operands<O>(g.C);
    Strassen<T>::tile(g, t.pointwise, t.epilogue, tile, [&](int64_t n, int64_t begin, int64_t end) {
      const int64_t count = ceil_div(end - begin, kMR) * panel;
      O* const a = static_cast<O*>(scratch(Scratch::kTile, static_cast<size_t>(count) * sizeof(O)));
      depthwise<T>(t, n * image + begin, n * image + end, a);
      return typename Strassen<T>::Source{a, panel, pitch, kChain, kMR * pitch};
    });
  }
  static constexpr SeparableKernels strassen(const char* counter) {
    using S = Strassen<T>;
    if constexpr (!kStrassen)
      return {};
    else
      return {counter, S::weight_bytes, S::pack, S::rows, S::panels, strassen_tile_rows, strassen_tile, nullptr};
  }

  static constexpr KernelTable table(int format, const char* name, const char* conv2d, const char* winograd_name,
                                     const char* restored_name, const char* separable_name, const char* strassen_name,
                                     const char* pair) {
    return {format,
            name,
            pair,
            kMR,
            kNR,
            ByWinograd::applies,
            by_winograd_once,
            by_restored,
            {conv2d, conv_weight_bytes, conv_pack, conv_rows, conv_tile_rows, conv_tile, conv_band_rows, nullptr},
            winograd(winograd_name),
            restored(restored_name),
            depthwise_weight_bytes,
            depthwise_pack,
            by_strassen,
            separable(separable_name),
            strassen(strassen_name)};
  }
};

#define IK_KERNEL_TABLE(type, format, variant)                                                                 \
  ForwardKernels<type>::table(                                                                                 \
      format, variant, "conv2d_bn_act.forward.cpu_" variant, "conv2d_bn_act.forward.cpu_" variant "_winograd", \
      "conv2d_bn_act.forward.cpu_" variant "_restored", "separable_conv2d.forward.cpu_" variant,               \
      "separable_conv2d.forward.cpu_" variant "_strassen", "asymmetric_pair.forward.cpu_" variant)

}  // namespace ik::cpu::IK_ISA
