#include <algorithm>

#include "common/counters.h"
#include "cuda/asymmetric_pair_lines.h"
#include "cuda/asymmetric_pair_sm90.cuh"
#include "cuda/asymmetric_pair_sm90.h"
#include "cuda/conv2d_bn_act_sm90_plan.h"

namespace ik::cuda {

namespace {

constexpr int64_t kTileRows = PairSm90Tile<64>::kRows;

struct PairLaunch {
  const TensorMap& x_map;
  const TensorMap& first_map;
  const TensorMap& second_map;
  const PairSm90Args& args;
  int blocks;
  size_t shared_bytes;
  const Context& context;
};

struct PairSm90Kernel {
  int columns;
  int64_t first_stage_bytes, second_stage_bytes;
  int64_t most_intermediate_bytes;
  int64_t (*shared_bytes)(int64_t intermediate_bytes);
  void (*launch)(const PairLaunch&);
};

template <typename T, int kN>
constexpr PairSm90Kernel pair_kernel() {
  using Tile = PairSm90Tile<kN>;
  using Conv = typename Tile::Conv;
  const auto launch = [](const PairLaunch& with) {
    IK_LAUNCH((asymmetric_pair_sm90<T, kN>), dim3(with.blocks), dim3(kRingThreads), with.shared_bytes, with.context,
              with.x_map, with.first_map, with.second_map, with.args);
  };
  return {kN,    Conv::kStageBytes, Conv::kStageBytes - Conv::kBytesA, kSharedBytes90 - Tile::bytes(0), Tile::bytes,
          launch};
}

constexpr int kKernels = 5;
template <typename T>
constexpr PairSm90Kernel kTable[kKernels] = {pair_kernel<T, 64>(), pair_kernel<T, 96>(), pair_kernel<T, 128>(),
                                             pair_kernel<T, 160>(), pair_kernel<T, 192>()};

const PairSm90Kernel& kernel_at(DType dtype, int index) {
  return dtype == DType::kFloat16 ? kTable<fp16>[index] : kTable<bf16>[index];
}

// The intermediate of so many lines.
struct Intermediate {
  int64_t zero_rows, tap_rows, rows, vectors;

  Intermediate(const PairForward& args, int64_t lines_of_tile) {
    const PairLines lines(args.second);
    tap_rows = lines.dilation * lines_of_tile;
    zero_rows = lines.pad * lines_of_tile;
    // The last tap sees as many rows as the tile has. Four vectors of a row and of the next then begin in the eight
    // groups of four banks, when octets are stored.
    constexpr int64_t kPattern = 8, kRemainder = 2;
    rows = ceil_div(kTileRows + (lines.taps - 1) * tap_rows - kRemainder, kPattern) * kPattern + kRemainder;
    const int64_t slice = depth_of(args.second).channels;
    vectors = ceil_div(args.first.K, slice) * slice / kCopyElements * rows;
  }

  int64_t bytes() const { return vectors * kCopyBytes; }
};

// Lines of a tile: as many as fit, of one image or of several, whichever leaves the fewest tiles.
struct Tiling {
  int64_t tile_lines = 0;
  int64_t tile_images = 0;
  int64_t line_tiles = 0;
  int64_t tiles = 0;  // 0: not even one line fits

  Tiling(const PairForward& args, const PairSm90Kernel& kernel) {
    const PairLines lines(args.second);
    int64_t most = std::min(kTileRows / std::max(lines.length, lines.out_length), lines.of_image * args.first.N);
    while (most > 0 && Intermediate(args, most).bytes() > kernel.most_intermediate_bytes) --most;
    for (int64_t along = 1; along <= std::min(most, lines.of_image); ++along) {
      const int64_t images = std::min(most / along, args.first.N);
      const int64_t across = ceil_div(lines.of_image, along);
      const int64_t count = across * ceil_div(args.first.N, images);
      if (tiles > 0 && count > tiles) continue;
      *this = {along, images, across, count};
    }
  }

 private:
  Tiling(int64_t lines, int64_t images, int64_t across, int64_t count)
      : tile_lines(lines), tile_images(images), line_tiles(across), tiles(count) {}
};

double predicted_clocks(const PairForward& args, const PairSm90Kernel& kernel, const Tiling& tiling,
                        int multiprocessors) {
  const double outputs = static_cast<double>(kTileRows) * kernel.columns;
  const auto product = [&](const ConvShape& shape, int64_t stage_bytes) {
    const double stage =
        predicted_stage_clocks(outputs, static_cast<double>(stage_bytes), tiling.tiles, multiprocessors);
    return static_cast<double>(ceil_div(shape.K, kernel.columns) * depth_of(shape).iterations) * stage;
  };
  const double stages = product(args.first, kernel.first_stage_bytes) + product(args.second, kernel.second_stage_bytes);
  const int64_t epilogues = ceil_div(args.first.K, kernel.columns) + ceil_div(args.second.K, kernel.columns);
  return predicted_kernel_clocks(tiling.tiles, multiprocessors, stages, static_cast<double>(epilogues) * outputs);
}

struct Choice {
  int tile = -1;
  double clocks = 0;

  Choice(const PairForward& args, const Context& context) {
    for (int i = 0; i < kKernels; ++i) {
      const PairSm90Kernel& kernel = kernel_at(args.dtype, i);
      const Tiling tiling(args, kernel);
      if (tiling.tiles == 0) continue;
      const double predicted = predicted_clocks(args, kernel, tiling, context.multiprocessors);
      if (tile >= 0 && predicted >= clocks) continue;
      tile = i;
      clocks = predicted;
    }
  }
};

PairDepth pair_depth(const ConvShape& shape) {
  const SliceDepth depth = depth_of(shape);
  return {depth.iterations, depth.channels, static_cast<int>(shape.C), static_cast<int>(shape.S),
          static_cast<int>(shape.R * shape.S)};
}

OctetEpilogue pair_epilogue(const void* scale, const void* shift, int64_t K, Activation activation) {
  OctetEpilogue epilogue{};
  epilogue.scale = static_cast<const float*>(scale);
  epilogue.shift = static_cast<const float*>(shift);
  epilogue.K = static_cast<int>(K);
  epilogue.activation = activation;
  return epilogue;
}

PairSm90Args kernel_args(const PairForward& args, const Tiling& tiling) {
  const ConvShape& first = args.first;
  const ConvShape& second = args.second;
  const PairLines lines(second);
  const Intermediate intermediate(args, tiling.tile_lines * tiling.tile_images);
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  return {pair_depth(first),
          pair_depth(second),
          pair_epilogue(args.first_scale, args.first_shift, first.K, args.first_activation),
          pair_epilogue(args.second_scale, args.second_shift, second.K, args.second_activation),
          args.y.data,
          args.y.stride_n,
          lines.vertical ? args.y.stride_w : args.y.stride_h,
          lines.vertical ? args.y.stride_h : args.y.stride_w,
          lines.vertical,
          narrow(first.N),
          narrow(lines.of_image),
          narrow(tiling.tile_images),
          narrow(tiling.tile_lines),
          narrow(tiling.line_tiles),
          narrow(tiling.tiles),
          narrow(lines.length),
          narrow(lines.out_length),
          narrow(first.pad_h),
          narrow(first.pad_w),
          narrow(first.dilation_h),
          narrow(first.dilation_w),
          narrow(intermediate.zero_rows),
          narrow(intermediate.tap_rows),
          narrow(intermediate.rows),
          narrow(intermediate.vectors)};
}

TensorMap weight_map(const PairForward& args, const ConvShape& shape, const void* packed) {
  const SliceDepth depth = depth_of(shape);
  return make_octet_map(args.dtype, packed, shape.K, shape.R * shape.S, shape.C, shape.C, depth.channels,
                        depth.swizzle());
}

TensorMap pixel_map(const PairForward& args, const Tiling& tiling) {
  const ConvShape& shape = args.first;
  const PairLines lines(args.second);
  const SliceDepth depth = depth_of(shape);
  const NhwcInput x = with_plain_strides(args.x, shape.N, shape.H, shape.W, shape.C);
  const int tile_lines = static_cast<int>(tiling.tile_lines);
  const int tile_images = static_cast<int>(tiling.tile_images);
  return make_tensor_map(
      {args.dtype,
       x.data,
       {shape.C, lines.vertical ? shape.W : shape.H, shape.N, lines.vertical ? shape.H : shape.W},
       {lines.vertical ? x.stride_w : x.stride_h, x.stride_n, lines.vertical ? x.stride_h : x.stride_w},
       {depth.channels, tile_lines, tile_images, static_cast<int>(lines.length)},
       depth.swizzle()});
}

}  // namespace

const char* asymmetric_pair_sm90_unsupported(const PairForward& args, const Context& context) {
  const ConvShape& first = args.first;
  const ConvShape& second = args.second;
  if (context.sm != 90) return "the Hopper kernel needs compute capability 9.0";
  if (args.dtype != DType::kBFloat16 && args.dtype != DType::kFloat16) return "the Hopper kernel is for 16-bit types";
  if (first.C % kCopyElements || first.K % kCopyElements || second.K % kCopyElements) {
    return "channels are not multiples of 8";
  }
  if (second.N * second.P() * second.Q() == 0) return nullptr;
  if (!is_vertical(second) && !is_horizontal(second)) return "the second window runs along both axes";
  if (first.stride_h != 1 || first.stride_w != 1 || PairLines(second).stride != 1) return "strides are not 1";
  const NhwcInput x = with_plain_strides(args.x, first.N, first.H, first.W, first.C);
  if (!has_aligned_pixels(x)) return "pixels of x do not begin at multiples of 16 bytes";
  const NhwcOutput y = with_plain_strides(args.y, second.N, second.P(), second.Q(), second.K);
  if (!has_aligned_pixels(y)) return "pixels of y do not begin at multiples of 16 bytes";
  for (const void* vector : {args.first_packed_weight, args.first_scale, args.first_shift, args.second_packed_weight,
                             args.second_scale, args.second_shift}) {
    if (!is_copy_aligned(vector)) return "weights, scale or shift do not begin at a multiple of 16 bytes";
  }
  constexpr int64_t kMost = int64_t{1} << 30;  // tiles are counted past the last one
  if (first.N * PairLines(second).of_image > kMost) return "more than 2^30 lines";
  if (kTileRows < std::max(PairLines(second).length, PairLines(second).out_length)) {
    return "lines of more than 128 pixels";
  }
  if (Choice(args, context).tile < 0) return "an intermediate of too many channels for shared memory";
  return nullptr;
}

double asymmetric_pair_sm90_clocks(const PairForward& args, const Context& context) {
  return Choice(args, context).clocks;
}

int asymmetric_pair_sm90_tiles() { return kKernels; }

int asymmetric_pair_sm90_tile_channels(int index) { return kTable<bf16>[index].columns; }

void asymmetric_pair_sm90_forward_tiled(const PairForward& args, int tile, const Context& context) {
  const PairSm90Kernel& kernel = kernel_at(args.dtype, tile);
  const Tiling tiling(args, kernel);
  const Intermediate intermediate(args, tiling.tile_lines * tiling.tile_images);
  kernel.launch({pixel_map(args, tiling), weight_map(args, args.first, args.first_packed_weight),
                 weight_map(args, args.second, args.second_packed_weight), kernel_args(args, tiling),
                 static_cast<int>(std::min<int64_t>(tiling.tiles, context.multiprocessors)),
                 static_cast<size_t>(kernel.shared_bytes(intermediate.bytes())), context});
  count_kernel(args.dtype == DType::kFloat16 ? "asymmetric_pair.forward.cuda_sm90_fp16"
                                             : "asymmetric_pair.forward.cuda_sm90_bf16");
}

void asymmetric_pair_sm90_forward(const PairForward& args, const Context& context) {
  asymmetric_pair_sm90_forward_tiled(args, Choice(args, context).tile, context);
}

}  // namespace ik::cuda
