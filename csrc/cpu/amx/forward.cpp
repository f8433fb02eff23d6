#if defined(__x86_64__)
#include "cpu/amx/depthwise.h"
#include "cpu/amx/packing.h"
#include "cpu/scratch.h"

namespace ik::cpu::amx {
namespace {

constexpr int64_t kTileBytes = 512 << 10;  // of A: it shares L2 with a panel of B
constexpr int64_t kStripBytes = 256 << 10;
constexpr int64_t kMostRows = 384;

// The order of a dense convolution's k axis. It depends on nothing but weight, stride and dilation, because the weights
// are packed once for all image sizes.
struct Order {
  bool grouped;  // R groups of S * C, each padded to whole blocks: readable from a padded strip
  int64_t groups, blocks;

  explicit Order(const Geometry& g) {
    const int64_t by_row = g.R * ceil_div(g.S * g.C, kDepth), dense = ceil_div(g.R * g.S * g.C, kDepth);
    const bool unit = g.stride_h == 1 && g.stride_w == 1 && g.dilation_w == 1;
    grouped = unit && g.R * g.S > 1 && 4 * by_row <= 5 * dense;
    groups = grouped ? g.R : 1;
    blocks = grouped ? by_row / g.R : dense;
  }
  int64_t total() const { return groups * blocks; }
};

size_t columns_bytes(int64_t K, int64_t blocks) {
  return static_cast<size_t>(ceil_div(K, kColumns) * blocks * kBlockBytes);
}

uint16_t weight_bits(const WeightView& w, int64_t k, int64_t c, int64_t r, int64_t s) {
  return static_cast<const Bf16*>(w.data)[k * w.stride_k + c * w.stride_c + r * w.stride_r + s * w.stride_s].bits;
}

// Winograd's products would have to be of float32, Strassen's would round what they read to bf16.
bool by_winograd(const Geometry&) { return false; }
bool by_winograd_once(const Geometry&, int64_t) { return false; }
bool by_restored(const Geometry&) { return false; }
bool by_strassen(const Geometry&) { return false; }

size_t conv_weight_bytes(const Geometry& g) { return columns_bytes(g.K, Order(g).total()); }

void conv_pack(const Geometry& g, const WeightView& w, void* packed, int64_t panel_begin, int64_t panel_end) {
  const Order order(g);
  const int64_t run = order.grouped ? g.S * g.C : g.R * g.S * g.C;
  const Bf16* const weight = static_cast<const Bf16*>(w.data);
  for (int64_t group = 0; group < order.groups; group++)
    for (int64_t block = 0; block < order.blocks; block++) {
      const BlockOffsets offsets(smaller(kDepth, run - block * kDepth), [&](int64_t i) {
        const int64_t at = block * kDepth + i, r = order.grouped ? group : at / (g.S * g.C);
        return at % g.C * w.stride_c + r * w.stride_r + at / g.C % g.S * w.stride_s;
      });
      for (int64_t q = panel_begin; q < panel_end; q++)
        pack_block(static_cast<char*>(packed) + ((q * order.groups + group) * order.blocks + block) * kBlockBytes,
                   [&](int64_t column) {
                     const int64_t k = q * kColumns + column;
                     return k < g.K ? offsets.read(weight + k * w.stride_k) : _mm512_setzero_si512();
                   });
    }
}

int64_t rows_of_panels(int64_t blocks) {
  return larger(2, smaller(kTileBytes / (kRows * kDepth * 2) / blocks, kMostRows / kRows)) * kRows;
}

int64_t conv_rows(const Geometry& g) { return Order(g).grouped ? Flat(g).positions(g) : g.N * g.P * g.Q; }

int64_t conv_tile_rows(const Geometry& g) {
  const Order order(g);
  if (!order.grouped) return rows_of_panels(order.total());
  return larger(192, smaller(1024, kStripBytes / (2 * g.C))) / kRows * kRows;
}

// What the epilogue of a tile needs, in this thread's scratch.
struct TileOutput {
  OutputRows rows;
  const float* scale;
  const float* shift;
};

template <typename Cursor>
TileOutput tile_output(const Epilogue& epilogue, int64_t K, int64_t count, Cursor cursor) {
  const int64_t columns = round_up(K, kColumns);
  const size_t bytes =
      static_cast<size_t>(2 * count) * sizeof(int64_t) + static_cast<size_t>(2 * columns) * sizeof(float);
  int64_t* y = static_cast<int64_t*>(scratch(Scratch::kRows, bytes));
  int64_t* residual = epilogue.residual.data ? y + count : nullptr;
  float* scale = reinterpret_cast<float*>(y + 2 * count);
  float* shift = scale + columns;
  const auto offset = [](const auto& view, const Pixel& at) {
    return at.n < 0 ? -1 : at.n * view.stride_n + at.p * view.stride_h + at.q * view.stride_w;
  };
  for (int64_t i = 0; i < count; i++, cursor.advance()) {
    const Pixel at = cursor.pixel();
    y[i] = offset(epilogue.y, at);
    if (residual) residual[i] = offset(epilogue.residual, at);
  }
  for (int64_t k = 0; k < columns; k++) {
    scale[k] = k >= K ? 0 : epilogue.scale ? static_cast<const float*>(epilogue.scale)[k] : 1;
    shift[k] = k >= K || !epilogue.shift ? 0 : static_cast<const float*>(epilogue.shift)[k];
  }
  return {{count, y, residual}, scale, shift};
}

Operand packed_operand(const char* data, int64_t groups, int64_t blocks) {
  return {data, groups * blocks * kBlockBytes, kDepth * 2, groups, blocks * kBlockBytes, blocks, kBlockBytes};
}
char* panels(int64_t rows, int64_t blocks) {
  return static_cast<char*>(scratch(Scratch::kTile, static_cast<size_t>(ceil_div(rows, kRows) * blocks * kBlockBytes)));
}

void multiply_tile(const Operand& a, const void* weight, int64_t K, const Epilogue& epilogue, const TileOutput& output,
                   const Tile& tile) {
  const TileScope scope;
  multiply(a, weight, K, output.rows, epilogue, output.scale, output.shift, tile.panel_begin, tile.panel_end);
}

// 1 x 1 convolutions of whole blocks can be read from x itself.
bool readable_in_place(const ConvTask& t) {
  const Geometry& g = t.geometry;
  return g.R * g.S == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_h == 0 && g.pad_w == 0 && g.C % kDepth == 0 &&
         g.P == g.H && g.Q == g.W && t.x.stride_h == g.W * t.x.stride_w && t.x.stride_n == g.H * t.x.stride_h &&
         t.x.stride_w % 1024 != 0;  // rows a multiple of 2 KiB apart would fight for the same sets of L1
}

void conv_tile_by_rows(const ConvTask& t, const Tile& tile) {
  const Geometry& g = t.geometry;
  const Order order(g);
  const int64_t count = tile.row_end - tile.row_begin, in_place = readable_in_place(t) ? count / kRows * kRows : 0;
  const TileOutput output = tile_output(t.epilogue, g.K, count, PixelCursor(g, tile.row_begin));
  if (in_place) {
    const char* x = static_cast<const char*>(t.x.data) + tile.row_begin * t.x.stride_w * 2;
    TileOutput part = output;
    part.rows.count = in_place;
    multiply_tile({x, kRows * t.x.stride_w * 2, t.x.stride_w * 2, 1, 0, order.blocks, kDepth * 2}, t.weight, g.K,
                  t.epilogue, part, tile);
  }
  if (in_place == count) return;
  char* a = panels(count - in_place, order.total());
  PixelCursor cursor(g, tile.row_begin + in_place);
  for (int64_t row = 0; row < count - in_place; row++, cursor.advance()) {
    im2col_row(g, t.x, cursor.pixel(), false, a + row / kRows * order.total() * kBlockBytes + row % kRows * kDepth * 2);
  }
  TileOutput part = output;
  part.rows = {count - in_place, output.rows.y + in_place,
               output.rows.residual ? output.rows.residual + in_place : nullptr};
  multiply_tile(packed_operand(a, 1, order.total()), t.weight, g.K, t.epilogue, part, tile);
}

void conv_tile_flat(const ConvTask& t, const Tile& tile) {
  const Geometry& g = t.geometry;
  const Order order(g);
  const Flat flat(g);
  const int64_t count = tile.row_end - tile.row_begin, rows = round_up(count, kRows);
  const TileOutput output = tile_output(t.epilogue, g.K, count, FlatCursor(g, flat, tile.row_begin));
  const int64_t tap_row = g.dilation_h * flat.row;
  // The last block of a group reads past its S * C elements, where weights are zero.
  const bool overreads = g.S * g.C % kDepth != 0;
  const int64_t span = rows + (g.R - 1) * tap_row + g.S + ceil_div(kDepth, g.C);
  Bf16* strip = static_cast<Bf16*>(scratch(Scratch::kTile, static_cast<size_t>(span * g.C) * 2));
  if (!copy_strip(g, flat, t.x, tile.row_begin, tile.row_begin + span, overreads, strip)) {
    const Operand a{reinterpret_cast<const char*>(strip),
                    kRows * g.C * 2,
                    g.C * 2,
                    order.groups,
                    tap_row * g.C * 2,
                    order.blocks,
                    kDepth * 2};
    multiply_tile(a, t.weight, g.K, t.epilogue, output, tile);
    return;
  }
  // Zero times infinity would leak into a neighbour: give every row its own copy.
  char* a = panels(count, order.total());
  FlatCursor cursor(g, flat, tile.row_begin);
  for (int64_t i = 0; i < count; i++, cursor.advance())
    im2col_row(g, t.x, cursor.pixel(), true, a + i / kRows * order.total() * kBlockBytes + i % kRows * kDepth * 2);
  multiply_tile(packed_operand(a, order.groups, order.blocks), t.weight, g.K, t.epilogue, output, tile);
}

int64_t conv_band_rows(const Geometry&) { return 1; }
void conv_tile(const ConvTask& t, const Tile& tile) {
  if (Order(t.geometry).grouped)
    conv_tile_flat(t, tile);
  else
    conv_tile_by_rows(t, tile);
}

// [block of 32 channels][R * S][16 even, 16 odd] in float
size_t depthwise_weight_bytes(const Geometry& g) {
  return static_cast<size_t>(round_up(g.C, kDepth) * g.R * g.S) * sizeof(float);
}
void depthwise_pack(const Geometry& g, const WeightView& w, void* packed) {
  float* out = static_cast<float*>(packed);
  for (int64_t c = 0; c < g.C; c += kDepth)
    for (int64_t r = 0; r < g.R; r++)
      for (int64_t s = 0; s < g.S; s++)
        for (int64_t i = 0; i < kDepth; i++) {
          const int64_t channel = c + channel_at(i);
          *out++ = channel < g.C ? to_accum(Bf16{weight_bits(w, channel, 0, r, s)}) : 0;
        }
}

size_t pointwise_bytes(const Geometry& g) { return columns_bytes(g.K, ceil_div(g.C, kDepth)); }

void pointwise_pack(const Geometry& g, const WeightView& w, void* packed, int64_t panel_begin, int64_t panel_end) {
  const int64_t blocks = ceil_div(g.C, kDepth);
  const Bf16* const weight = static_cast<const Bf16*>(w.data);
  alignas(64) uint16_t order[kDepth];
  for (int64_t i = 0; i < kDepth; i++) order[i] = static_cast<uint16_t>(channel_at(i));
  const __m512i even_then_odd = _mm512_load_si512(order);
  for (int64_t block = 0; block < blocks; block++) {
    const BlockOffsets offsets(smaller(kDepth, g.C - block * kDepth),
                               [&](int64_t i) { return (block * kDepth + i) * w.stride_c; });
    for (int64_t q = panel_begin; q < panel_end; q++)
      pack_block(static_cast<char*>(packed) + (q * blocks + block) * kBlockBytes, [&](int64_t column) {
        const int64_t k = q * kColumns + column;
        if (k >= g.K) return _mm512_setzero_si512();
        return _mm512_permutexvar_epi16(even_then_odd, offsets.read(weight + k * w.stride_k));
      });
  }
}

int64_t separable_rows(const Geometry& g) { return g.N * g.P * g.Q; }
int64_t separable_panels(const Geometry& g) { return ceil_div(g.K, kColumns); }
int64_t separable_tile_rows(const Geometry& g) { return rows_of_panels(ceil_div(g.C, kDepth)); }

void separable_tile(const SeparableTask& t, const Tile& tile) {
  const Geometry& g = t.geometry;
  const int64_t count = tile.row_end - tile.row_begin, blocks = ceil_div(g.C, kDepth);
  const TileOutput output = tile_output(t.epilogue, g.K, count, PixelCursor(g, tile.row_begin));
  char* a = panels(count, blocks);
  depthwise(t, tile.row_begin, tile.row_end, a);
  multiply_tile(packed_operand(a, 1, blocks), t.pointwise, g.K, t.epilogue, output, tile);
}

}  // namespace

const KernelTable& kernel_table_bf16() {
  static constexpr KernelTable kTable = {
      30,
      "amx_bf16",
      "asymmetric_pair.forward.cpu_amx_bf16",
      kRows,
      kColumns,
      by_winograd,
      by_winograd_once,
      by_restored,
      {"conv2d_bn_act.forward.cpu_amx_bf16", conv_weight_bytes, conv_pack, conv_rows, conv_tile_rows, conv_tile,
       conv_band_rows, nullptr},
      {},
      {},
      depthwise_weight_bytes,
      depthwise_pack,
      by_strassen,
      {"separable_conv2d.forward.cpu_amx_bf16", pointwise_bytes, pointwise_pack, separable_rows, separable_panels,
       separable_tile_rows, separable_tile, nullptr},
      {}};
  return kTable;
}

}  // namespace ik::cpu::amx
#endif
