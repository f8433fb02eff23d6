// separable_conv2d for any shape (sm_80): a block computes tiles of kRows output pixels by kColumns output channels,
// and walks over the input channels 128 bytes at a time. In step i the tensor cores multiply chunk i while the
// depthwise sums of chunk i + 1 are computed from shared memory and chunk i + 2 is on its way there. Half of the warps
// start with the product, the other half with the depthwise sums, so that each scheduler has both kinds of work. The
// steps of all tiles of a block form one sequence: the first loads of a tile overlap with the end of the tile before
// it.
#pragma once
#include "cuda/fast_divide.h"
#include "cuda/separable_conv2d_depthwise.cuh"
#include "cuda/separable_conv2d_epilogue.cuh"

namespace ik::cuda::separable {

// A tile is a run of kRows output pixels of a strip: a range of columns of one image, row after row. The strip's width
// is a multiple of kGroup, so that the pixels of a group are neighbours.
struct StripTiling {
  int width;
  int halo_rows, halo_columns;                               // input pixels that any tile reads
  int tiles, column_tiles;                                   // tiles in all, and of one run of pixels
  FastDivide by_width, by_column_tiles, by_runs, by_strips;  // runs of one strip, strips of one image
};

struct TileArgs {
  const void* x;
  int64_t x_stride_n;
  int x_stride_h, x_stride_w;
  const void* depthwise;        // [R * S][packed_C]
  const void* pointwise;        // [K][packed_C]
  const float* depthwise_bias;  // [C]; null = 0
  int H, W, C, packed_C;
  int P, Q;
  int pad_h, pad_w;
  DepthwiseWindow window;
  StripTiling tiling;
  Activation input_activation, mid_activation;
  bool x_aligned;            // every vector of x is one aligned access
  bool separate_activation;  // the input's activation is neither none nor ReLU
  int64_t y_stride_n, y_stride_h, y_stride_w;
  int64_t residual_stride_n, residual_stride_h, residual_stride_w;
  Epilogue epilogue;
  bool staged;     // rows of y and of the residual are accessed 16 bytes at a time
  float* partial;  // [runs of pixels][2][K]: mean and sum of squared deviations of y; null = not wanted
  float* counts;   // [runs of pixels]: pixels in the image
};

template <Math kMathOf, int kRowsOf, int kColumnsOf, int kWarpRowsOf, int kWarpColumnsOf, int kBlocksOf>
struct TileConfig {
  static constexpr Math kMath = kMathOf;
  static constexpr int kRows = kRowsOf;
  static constexpr int kColumns = kColumnsOf;
  static constexpr int kWarpRows = kWarpRowsOf;  // warps along the pixels
  static constexpr int kWarpColumns = kWarpColumnsOf;
  static constexpr int kBlocks = kBlocksOf;  // of a multiprocessor, that the registers allow
  static constexpr int kWarps = kWarpRows * kWarpColumns;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRowTiles = kRows / kWarpRows / kFragmentRows;
  static constexpr int kColumnTiles = kColumns / kWarpColumns / kBlockColumns;
  // With so many accumulators there are no registers for a second epilogue.
  static constexpr bool kOnlyStaged = kRowTiles * kColumnTiles > 16;
  static_assert(kRows / kGroup * kRowVectors == kThreads, "a group of pixels and 16 bytes of channels per thread");
};

// Byte offsets of the block's shared memory. Everything is double-buffered.
template <typename Config>
struct TileShared {
  int pointwise, halo, weights, vectors, sums, end;
  int halo_bytes, weight_bytes;

  using Vectors = ScaleShiftTile<Config::kColumns>;
  static constexpr int kA = 0;
  static constexpr int kABytes = Config::kRows * kRowBytes;
  static constexpr int kPointwiseBytes = Config::kColumns * kRowBytes;

  __host__ IK_DEVICE TileShared(int halo_pixels, int window) {
    halo_bytes = halo_pixels * kRowBytes;
    weight_bytes = window * kRowBytes;
    pointwise = 2 * kABytes;
    halo = pointwise + 2 * kPointwiseBytes;
    weights = halo + 2 * halo_bytes;
    vectors = weights + 2 * weight_bytes;
    sums = vectors + 2 * static_cast<int>(sizeof(Vectors));
    end = sums + (Config::kWarpRows + 1) * Config::kColumns * static_cast<int>(sizeof(float));
  }
};

// Where a tile lies.
struct TilePlace {
  int image, q0;  // q0: the strip's first column
  int run;        // number of the run of pixels in all images
  int first;      // first pixel in the strip
  int column0;    // first output channel

  IK_DEVICE TilePlace(const StripTiling& tiling, int tile, int rows, int columns) {
    run = tiling.by_column_tiles.quotient(tile);
    column0 = (tile - run * tiling.column_tiles) * columns;
    const int strip = tiling.by_runs.quotient(run);
    first = (run - strip * static_cast<int>(tiling.by_runs.divisor)) * rows;
    image = tiling.by_strips.quotient(strip);
    q0 = (strip - image * static_cast<int>(tiling.by_strips.divisor)) * tiling.width;
  }
};

// A step of the block's sequence: a chunk of channels of a tile.
struct TileStep {
  int tile;
  int chunk = 0;
  int parity = 0;  // of the block's tiles, counted one by one

  IK_DEVICE void advance(int chunks) {
    if (++chunk < chunks) return;
    chunk = 0;
    parity ^= 1;
    tile += static_cast<int>(gridDim.x);
  }
};

template <typename Config, bool kGather>
struct TileKernel {
  using Form = Format<Config::kMath>;
  using Type = typename Form::Type;
  using Product = WarpProduct<Config::kMath, Config::kRowTiles, Config::kColumnTiles>;
  using Vectors = ScaleShiftTile<Config::kColumns>;
  using Part = Share<Config::kMath, kGather>;  // of the depthwise sums

  const TileArgs& args;
  const TileShared<Config> shared;
  unsigned char* const memory;
  const uint32_t base;
  const int thread = static_cast<int>(threadIdx.x);
  const int vector = thread % kRowVectors;
  const int lane = thread % Part::kLanes;
  const int first_row = thread / Part::kLanes * Part::kPixels;  // of the tile: the first one of this thread's sums

  // State of the loads and of the depthwise sums, renewed with every tile.
  const Type* halo_from = nullptr;          // the image
  int halo_h0 = 0, halo_w0 = 0;             // first input pixel of the halo
  uint32_t group_halo[Part::kGroups] = {};  // offset of each group's first tap in the halo
  const Type* group_from = nullptr;
  int group_h0 = 0, group_w0 = 0;

  IK_DEVICE TileKernel(const TileArgs& args_, unsigned char* memory_)
      : args(args_),
        shared(kGather ? 0 : args_.tiling.halo_rows * args_.tiling.halo_columns, args_.window.R * args_.window.S),
        memory(memory_),
        base(smem_u32(memory_)) {}

  IK_DEVICE Vectors& vectors(int parity) const {
    return *reinterpret_cast<Vectors*>(memory + shared.vectors + parity * sizeof(Vectors));
  }

  // ---- loads

  IK_DEVICE void load_halo(const TileStep& step, int stage) {
    if (step.chunk == 0) {
      const TilePlace place(args.tiling, step.tile, Config::kRows, Config::kColumns);
      halo_from = static_cast<const Type*>(args.x) + place.image * args.x_stride_n;
      halo_h0 = args.tiling.by_width.quotient(place.first) * args.window.stride_h - args.pad_h;
      halo_w0 = place.q0 * args.window.stride_w - args.pad_w;
    }
    const int columns = args.tiling.halo_columns;
    const int pixels = args.tiling.halo_rows * columns;
    const int channel = step.chunk * Form::kChannels + vector * Form::kVector;
    const bool has_channel = channel < args.C;
    constexpr int kAtOnce = Config::kThreads / kRowVectors;
    int pixel = thread / kRowVectors;
    int row = pixel / columns;
    int column = pixel - row * columns;
    const int row_step = kAtOnce / columns;
    const int column_step = kAtOnce - row_step * columns;
    uint32_t to = base + shared.halo + stage * shared.halo_bytes + thread * 16;
#pragma unroll 1
    for (; pixel < pixels; pixel += kAtOnce) {  // gate: halo trips=7
      const int h = halo_h0 + row;
      const int w = halo_w0 + column;
      const bool inside = has_channel && static_cast<unsigned>(h) < static_cast<unsigned>(args.H) &&
                          static_cast<unsigned>(w) < static_cast<unsigned>(args.W);
      const int offset = inside ? h * args.x_stride_h + w * args.x_stride_w + channel : 0;
      cp_async16(to, halo_from + offset, inside ? 16 : 0);
      to += kAtOnce * kRowBytes;
      row += row_step;
      column += column_step;
      if (column >= columns) {
        column -= columns;
        ++row;
      }
    }
  }

  IK_DEVICE void load_weights(const TileStep& step, int stage) {
    const int channel = step.chunk * Form::kChannels + vector * Form::kVector;
    const bool inside = channel < args.packed_C;
    const Type* from = static_cast<const Type*>(args.depthwise) + (inside ? channel : 0);
    const uint32_t to = base + shared.weights + stage * shared.weight_bytes + vector * 16;
    // gate: weights warps=9/4
#pragma unroll 1
    for (int tap = thread / kRowVectors; tap < args.window.R * args.window.S; tap += Config::kThreads / kRowVectors) {
      cp_async16(to + tap * kRowBytes, from + static_cast<int64_t>(tap) * args.packed_C, inside ? 16 : 0);
    }
  }

  IK_DEVICE void load_pointwise(const TileStep& step, int stage) {
    const int column_tile = step.tile - args.tiling.by_column_tiles.quotient(step.tile) * args.tiling.column_tiles;
    const int column0 = column_tile * Config::kColumns;
    if (step.chunk == 0) vectors(step.parity).load(args.epilogue, column0, thread, Config::kThreads);
    const int channel = step.chunk * Form::kChannels + vector * Form::kVector;
    constexpr int kAtOnce = Config::kThreads / kRowVectors;
    static_assert(kAtOnce % 8 == 0, "a thread's rows share their place in the swizzle");
    const int row = thread / kRowVectors;
    uint32_t to = base + shared.pointwise + stage * TileShared<Config>::kPointwiseBytes + swizzled(row, vector);
    const Type* from =
        static_cast<const Type*>(args.pointwise) + (static_cast<int64_t>(column0) + row) * args.packed_C + channel;
    const int64_t from_step = static_cast<int64_t>(kAtOnce) * args.packed_C;
    const int rows = channel < args.packed_C ? args.epilogue.K - column0 : 0;
    // gate: pointwise
#pragma unroll
    for (int i = 0; i < Config::kColumns / kAtOnce; ++i) {
      const bool inside = row + i * kAtOnce < rows;
      cp_async16(to + i * kAtOnce * kRowBytes, inside ? from : static_cast<const Type*>(args.pointwise),
                 inside ? 16 : 0);
      from += from_step;
    }
  }

  // ---- depthwise

  // Activations other than ReLU, once for each input of the halo and rounded as PyTorch rounds them.
  IK_DEVICE void activate_halo(int stage) const {
    const int vectors_of_halo = shared.halo_bytes / 16;
    const uint32_t halo = base + shared.halo + stage * shared.halo_bytes;
    for (int i = thread; i < vectors_of_halo; i += Config::kThreads) {
      float values[Form::kVector];
      Form::unpack(lds128(halo + i * 16), values);
      activate(args.input_activation, values);
      sts128(halo + i * 16, Form::pack_storage(values));
    }
  }

  IK_DEVICE void place_groups(const TileStep& step) {
    const TilePlace place(args.tiling, step.tile, Config::kRows, Config::kColumns);
#pragma unroll
    for (int group = 0; group < Part::kGroups; ++group) place_group(place, group);
  }

  IK_DEVICE void place_group(const TilePlace& place, int group) {
    const int pixel = place.first + first_row + group * kGroup;
    const int p = args.tiling.by_width.quotient(pixel);
    const int column = pixel - p * args.tiling.width;
    if constexpr (kGather) {
      group_from = static_cast<const Type*>(args.x) + place.image * args.x_stride_n;
      group_h0 = p * args.window.stride_h - args.pad_h;
      group_w0 = (place.q0 + column) * args.window.stride_w - args.pad_w;
    } else {
      const int row = p - args.tiling.by_width.quotient(place.first);
      const int first = row * args.window.stride_h * args.tiling.halo_columns + column * args.window.stride_w;
      group_halo[group] = first * kRowBytes + lane * Part::kBytes;
    }
  }

  IK_DEVICE void begin_sums(typename Part::Sums& sums, int channel) const {
    float bias[Part::kChannels] = {};
    if (args.depthwise_bias) {
#pragma unroll
      for (int i = 0; i < Part::kChannels; ++i) {
        if (channel + i < args.C) bias[i] = args.depthwise_bias[channel + i];
      }
    }
#pragma unroll
    for (int pixel = 0; pixel < Part::kPixels; ++pixel) {
#pragma unroll
      for (int i = 0; i < Part::kChannels; ++i) sums[pixel / kGroup][pixel % kGroup][i] = bias[i];
    }
  }

  IK_DEVICE void sum_inputs(typename Part::Sums& sums, int channel, int stage) const {
    const uint32_t weights = base + shared.weights + stage * shared.weight_bytes + lane * Part::kBytes;
    if constexpr (kGather) {
      const int channels = args.C - channel;
      const GatheredImage<Type> image = {group_from + channel,
                                         args.x_stride_h,
                                         args.x_stride_w,
                                         args.H,
                                         args.W,
                                         channels,
                                         args.x_aligned && channels >= Form::kVector};
      if (channels > 0) {
        sum_gathered<Part>(sums, args.window, args.input_activation, image, group_h0, group_w0, weights);
      }
    } else {
      const uint32_t stage_halo = base + shared.halo + stage * shared.halo_bytes;
      uint32_t halo[Part::kGroups];
#pragma unroll
      for (int group = 0; group < Part::kGroups; ++group) halo[group] = stage_halo + group_halo[group];
      const int row_bytes = args.window.dilation_h * args.tiling.halo_columns * kRowBytes;
      const uint32_t bound = Form::lower_bound(args.input_activation == Activation::kRelu);
      sum_window<Part>(sums, args.window, bound, halo, row_bytes, weights);
    }
  }

  IK_DEVICE void depthwise(const TileStep& step, int stage) {
    if (step.chunk == 0) place_groups(step);
    const int channel = step.chunk * Form::kChannels + lane * Part::kChannels;
    typename Part::Sums sums;
    begin_sums(sums, channel);
    sum_inputs(sums, channel, stage);
    store_sums<Part>(sums, args.mid_activation, base + stage * TileShared<Config>::kABytes, first_row, lane);
  }

  // ---- product and epilogue

  IK_DEVICE int warp() const { return thread / 32; }
  IK_DEVICE int warp_row0() const { return warp() / Config::kWarpColumns * (Config::kRows / Config::kWarpRows); }
  IK_DEVICE int warp_column0() const {
    return warp() % Config::kWarpColumns * (Config::kColumns / Config::kWarpColumns);
  }

  IK_DEVICE void multiply(typename Product::Sums& sums, int stage) const {
    const uint32_t a = base + stage * TileShared<Config>::kABytes + warp_row0() * kRowBytes;
    const uint32_t b =
        base + shared.pointwise + stage * TileShared<Config>::kPointwiseBytes + warp_column0() * kRowBytes;
    Product::add(sums, a, b, thread % 32);
  }

  // Row of the tile that lane's fragment f holds in half h.
  IK_DEVICE int fragment_row(int f, int h) const { return warp_row0() + f * kFragmentRows + 8 * h + thread % 32 / 4; }

  IK_DEVICE OutputPixel output_pixel(const TilePlace& place, int row) const {
    const int pixel = place.first + row;
    const int p = args.tiling.by_width.quotient(pixel);
    const int q = place.q0 + pixel - p * args.tiling.width;
    return {p < args.P && q < args.Q, place.image * args.y_stride_n + p * args.y_stride_h + q * args.y_stride_w,
            place.image * args.residual_stride_n + p * args.residual_stride_h + q * args.residual_stride_w};
  }

  // stage: of the last product, whose weights nobody needs any more once all warps are here.
  IK_DEVICE void store(const typename Product::Sums& sums, const TileStep& step, int stage) const {
    const TilePlace place(args.tiling, step.tile, Config::kRows, Config::kColumns);
    const Vectors& scale_shift = vectors(step.parity);
    if (args.partial) store_statistics(sums, place, scale_shift);
    if constexpr (!Form::kIsFloat) {
      if (Config::kOnlyStaged || args.staged) {
        __syncthreads();
        store_staged(sums, place, scale_shift, stage);
        return;
      }
    }
    if constexpr (!Config::kOnlyStaged) store_directly(sums, place, scale_shift);
  }

  IK_DEVICE void store_directly(const typename Product::Sums& sums, const TilePlace& place,
                                const Vectors& scale_shift) const {
#pragma unroll
    for (int f = 0; f < Config::kRowTiles; ++f) {
      const OutputPixel pixel[2] = {output_pixel(place, fragment_row(f, 0)), output_pixel(place, fragment_row(f, 1))};
      store_fragment<Type, Config::kColumnTiles>(sums[f], pixel, place.column0 + warp_column0(), scale_shift,
                                                 warp_column0(), args.epilogue);
    }
  }

  IK_DEVICE void store_staged(const typename Product::Sums& sums, const TilePlace& place, const Vectors& scale_shift,
                              int stage) const {
    using Staged = StagedFragment<Config::kColumnTiles>;
    static_assert(Config::kWarps * Staged::kBytes <= TileShared<Config>::kPointwiseBytes,
                  "in the place of the weights");
    const uint32_t staged =
        base + shared.pointwise + stage * TileShared<Config>::kPointwiseBytes + warp() * Staged::kBytes;
#pragma unroll
    for (int f = 0; f < Config::kRowTiles; ++f) {
      const auto pixel_of = [&](int row) { return output_pixel(place, warp_row0() + f * kFragmentRows + row); };
      store_fragment_staged<Type, Config::kColumnTiles>(sums[f], staged, pixel_of, place.column0 + warp_column0(),
                                                        scale_shift, warp_column0(), args.epilogue);
    }
  }

  // Pixels of the strip before this one, in its own order, that lie in the image.
  IK_DEVICE int pixels_before(const TilePlace& place, int pixel) const {
    const int width = args.tiling.width;
    const int columns = args.Q - place.q0 < width ? args.Q - place.q0 : width;
    const int p = args.tiling.by_width.quotient(pixel);
    if (p >= args.P) return args.P * columns;
    const int rest = pixel - p * width;
    return p * columns + (rest < columns ? rest : columns);
  }

  // The sum over the warps' rows, in their order.
  IK_DEVICE float total(const float* sums, int column) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Config::kWarpRows; ++i) sum += sums[i * Config::kColumns + column];
    return sum;
  }

  IK_DEVICE void store_statistics(const typename Product::Sums& sums, const TilePlace& place,
                                  const Vectors& scale_shift) const {
    float* const sums_of_warps = reinterpret_cast<float*>(memory + shared.sums);
    float* const mean = sums_of_warps + Config::kWarpRows * Config::kColumns;
    float* const own_sums = sums_of_warps + warp() / Config::kWarpColumns * Config::kColumns;
    const int count = pixels_before(place, place.first + Config::kRows) - pixels_before(place, place.first);
    float* const partial = args.partial + static_cast<int64_t>(place.run) * 2 * args.epilogue.K;
    uint32_t rows_inside = 0;
#pragma unroll
    for (int i = 0; i < 2 * Config::kRowTiles; ++i) {
      rows_inside |= static_cast<uint32_t>(output_pixel(place, fragment_row(i / 2, i % 2)).inside) << i;
    }

    sum_rows<Type, Config::kRowTiles, Config::kColumnTiles>(sums, rows_inside, scale_shift, warp_column0(), ValueTerm{},
                                                            own_sums);
    __syncthreads();
    if (thread == 0 && place.column0 == 0) args.counts[place.run] = static_cast<float>(count);
    for (int i = thread; i < Config::kColumns; i += Config::kThreads) {
      mean[i] = total(sums_of_warps, i) / static_cast<float>(count > 0 ? count : 1);
      if (place.column0 + i < args.epilogue.K) partial[place.column0 + i] = mean[i];
    }
    __syncthreads();
    sum_rows<Type, Config::kRowTiles, Config::kColumnTiles>(sums, rows_inside, scale_shift, warp_column0(),
                                                            SquareTerm{mean}, own_sums);
    __syncthreads();
    for (int i = thread; i < Config::kColumns; i += Config::kThreads) {
      if (place.column0 + i < args.epilogue.K) {
        partial[args.epilogue.K + place.column0 + i] = total(sums_of_warps, i);
      }
    }
  }

  // ---- the sequence

  IK_DEVICE void run() {
    const int chunks = (args.C + Form::kChannels - 1) / Form::kChannels;
    const int first = static_cast<int>(blockIdx.x);
    const int blocks = static_cast<int>(gridDim.x);
    const int steps = (args.tiling.tiles - first + blocks - 1) / blocks * chunks;
    TileStep input{first};
    TileStep next{first};
    TileStep current{first};
    typename Product::Sums sums = {};

    load_input(input, 0);
    input.advance(chunks);
    cp_async_commit();
    for (int i = -1; i < steps; ++i) {
      const int stage = i & 1;
      cp_async_wait<0>();
      __syncthreads();
      if (i + 2 < steps) {
        load_input(input, stage);
        input.advance(chunks);
      }
      const bool has_next = i + 1 < steps;
      if (has_next) load_pointwise(next, stage ^ 1);
      cp_async_commit();
      if (!kGather && args.separate_activation && has_next) {
        activate_halo(stage ^ 1);
        __syncthreads();
      }
      const int product_turn = warp() < Config::kWarps / 2 ? 0 : 1;
#pragma unroll 1
      for (int turn = 0; turn < 2; ++turn) {  // gate: product
        if (turn == product_turn) {
          if (i >= 0) multiply(sums, stage);
        } else if (has_next) {
          depthwise(next, stage ^ 1);
        }
      }
      if (has_next) next.advance(chunks);
      if (i < 0) continue;
      if (current.chunk == chunks - 1) {
        store(sums, current, stage);
        clear(sums);
      }
      current.advance(chunks);
    }
  }

  IK_DEVICE void load_input(const TileStep& step, int stage) {
    if constexpr (!kGather) load_halo(step, stage);
    load_weights(step, stage);
  }

  static IK_DEVICE void clear(typename Product::Sums& sums) {
#pragma unroll
    for (int f = 0; f < Config::kRowTiles; ++f) {
#pragma unroll
      for (int j = 0; j < 4 * Config::kColumnTiles; ++j) sums[f][j] = 0.0f;
    }
  }
};

template <typename Config, bool kGather>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    tile_kernel(const __grid_constant__ TileArgs args) {
  IK_DYNAMIC_SHARED(memory);
  TileKernel<Config, kGather>(args, memory).run();
}

}  // namespace ik::cuda::separable
