// The kernel table of one instruction set and dtype: producer -> product -> epilogue, one tile at a time.
//
#pragma once
#include "cpu/conv_rows.h"
#include "cpu/depthwise.h"
#include "cpu/pack_columns.h"
#include "cpu/winograd.h"

namespace ik::cpu::IK_ISA {

template <typename T>
struct ForwardKernels {
  using A = Accum<T>;
  static constexpr int64_t kMR = Gemm<A>::kMR, kNR = Gemm<A>::kNR, kLanes = Vec<A>::kLanes;
  // The tile of A shares L2 with a panel of B.
  static constexpr int64_t kTileBytes = kLanes * sizeof(A) == 64 ? 512 << 10 : 192 << 10;

  static size_t columns_bytes(int64_t K, int64_t k) { return static_cast<size_t>(round_up(K, kNR) * k) * sizeof(A); }
  static size_t conv_weight_bytes(const Geometry& g) {
    return Winograd<T>::applies(g) ? Winograd<T>::weight_bytes(g) : columns_bytes(g.K, g.R * g.S * g.C);
  }
  static void conv_pack(const Geometry& g, const WeightView& w, void* packed, int64_t panel_begin, int64_t panel_end) {
    if (Winograd<T>::applies(g)) return Winograd<T>::pack(g, w, packed, panel_begin, panel_end);
    const int64_t k = g.R * g.S * g.C;
    for (int64_t q = panel_begin; q < panel_end; q++)
      pack_columns<T>(g, w, q * kNR, static_cast<A*>(packed) + q * k * kNR);
  }
  // Row panels of unequal height count as whole ones, so that any split at multiples of kMR is one between panels.
  static int64_t conv_rows(const Geometry& g) {
    if (Winograd<T>::applies(g)) return Winograd<T>::rows(g);
    return g.N * PixelLines(g, kMR).panels_of_image() * kMR;
  }
  static int64_t conv_tile_rows(const Geometry& g) {
    if (Winograd<T>::applies(g)) return Winograd<T>::tile_rows(g, kTileBytes);
    const PixelLines lines(g, kMR);
    const int64_t image = larger(1, lines.strip_lines(0, g.P)) * lines.width * g.C * static_cast<int64_t>(sizeof(A));
    return larger(2, kTileBytes * lines.panels_of_image() / larger(1, image)) * kMR;
  }
  static void conv_tile(const ConvTask& t, const Tile& tile) {
    const Geometry& g = t.geometry;
    if (Winograd<T>::applies(g)) return Winograd<T>::tile(t, tile);
    const Rows<A> rows = ConvRows<T>::of(t, tile.row_begin / kMR, tile.row_end / kMR);
    multiply<T>(rows, t.weight, g.R * g.S * g.C, g.K, t.epilogue, tile.panel_begin, tile.panel_end);
  }

  static int64_t separable_tile_rows(const Geometry& g) {
    const int64_t fits = kTileBytes / static_cast<int64_t>(sizeof(A)) * kMR / panel_elements<A>(g.C);
    return larger(4, smaller(fits, 448) / kMR) * kMR;
  }
  static void separable_tile(const SeparableTask& t, const Tile& tile) {
    const int64_t elements = ceil_div(tile.row_end - tile.row_begin, kMR) * panel_elements<A>(t.geometry.C);
    A* a = static_cast<A*>(scratch(Scratch::kTile, static_cast<size_t>(elements) * sizeof(A)));
    depthwise<T>(t, tile.row_begin, tile.row_end, a);
    const Rows<A> rows = depthwise_rows<T>(t, tile.row_begin, tile.row_end, a);
    multiply<T>(rows, t.pointwise, t.geometry.C, t.geometry.K, t.epilogue, tile.panel_begin, tile.panel_end);
  }

  // [channel vector][R * S][kLanes]
  static size_t depthwise_weight_bytes(const Geometry& g) {
    return static_cast<size_t>(round_up(g.C, kLanes) * g.R * g.S) * sizeof(A);
  }
  static void depthwise_pack(const Geometry& g, const WeightView& w, void* packed) {
    A* out = static_cast<A*>(packed);
    for (int64_t c = 0; c < round_up(g.C, kLanes); c += kLanes)
      for (int64_t r = 0; r < g.R; r++)
        for (int64_t s = 0; s < g.S; s++)
          for (int64_t i = 0; i < kLanes; i++)
            *out++ = c + i < g.C ? to_accum(read_weight<T>(w, c + i, 0, r, s)) : A(0);
  }
  static size_t pointwise_weight_bytes(const Geometry& g) { return columns_bytes(g.K, g.C); }
  static void pointwise_pack(const Geometry& g, const WeightView& w, void* packed, int64_t panel_begin,
                             int64_t panel_end) {
    Geometry point = g;
    point.R = point.S = 1;
    conv_pack(point, w, packed, panel_begin, panel_end);
  }

  static constexpr KernelTable table(int format, const char* name, const char* conv2d, const char* winograd,
                                     const char* separable, const char* pair) {
    return {format,
            name,
            conv2d,
            winograd,
            separable,
            pair,
            kMR,
            kNR,
            Winograd<T>::applies,
            conv_weight_bytes,
            conv_pack,
            conv_rows,
            conv_tile_rows,
            conv_tile,
            depthwise_weight_bytes,
            depthwise_pack,
            pointwise_weight_bytes,
            pointwise_pack,
            separable_tile_rows,
            separable_tile};
  }
};

#define IK_KERNEL_TABLE(type, format, variant)                                       \
  ForwardKernels<type>::table(format, variant, "conv2d_bn_act.forward.cpu_" variant, \
                              "conv2d_bn_act.forward.cpu_" variant "_winograd",      \
                              "separable_conv2d.forward.cpu_" variant, "asymmetric_pair.forward.cpu_" variant)

}  // namespace ik::cpu::IK_ISA
