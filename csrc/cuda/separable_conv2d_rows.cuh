// separable_conv2d for the memory-bound layers: few channels, large images, 3 x 3 windows of stride 1. The pointwise
// weights stay in shared memory. Each worker of 128 threads walks down a strip of an image, kTall output rows at a
// time; a ring holds the input rows of the step and of the next, so that every input row of a strip is loaded once.
// Workers of a block share the weights and nothing else: while one waits for memory or at its barrier, the others
// compute.
//
// What a pixel of 128 -> 128 channels costs a multiprocessor: 512 bytes from and to memory (the two columns that strips
// share come from L2), which take 28 to 31 clocks at the 4.3 TB/s that 132 multiprocessors copy; 29 clocks of issue
// slots and 34 of shared memory by the instructions of the compiled loops (12 of them the product's operands, 9 the
// depthwise sums). The three overlap, so counts allow at most 80 to 90 per cent of the copy's bandwidth.
#pragma once
#include "cuda/fast_divide.h"
#include "cuda/separable_conv2d_epilogue.cuh"
#include "cuda/separable_conv2d_math.cuh"

namespace ik::cuda::separable {

constexpr int kTall = 4;  // output rows of a step
constexpr int kTaps = 3;  // along either side of the window
constexpr int kWorkerThreads = 128;
constexpr int kMostWorkers = 3;
constexpr int kMostColumns = 256;             // output channels
constexpr int kStepRows = kTall + kTaps - 1;  // input rows of a step
constexpr int kRingRows = kStepRows + kTall;  // and those of the next
constexpr int kLanesOfRow = kRowBytes / 8;    // a thread computes four channels of a chunk

struct RowsArgs {
  const void* x;
  int64_t x_stride_n;
  int x_stride_h, x_stride_w;
  const void* depthwise;        // [9][packed_C]
  const void* pointwise;        // [K][packed_C]
  const float* depthwise_bias;  // [C]; null = 0
  int H, W, C, packed_C;
  int P, Q;
  int pad_h, pad_w;
  int segment_rows;  // output rows of an item: a multiple of kTall
  int items;         // segments of strips of images
  FastDivide by_segments, by_strips;
  int padded_K;  // a multiple of the columns of a pass
  bool input_relu;
  Activation mid_activation;
  int64_t y_stride_n, y_stride_h, y_stride_w;
  int64_t residual_stride_n, residual_stride_h, residual_stride_w;
  Epilogue epilogue;
};

// kChunks: 128 bytes of channels, one or two. A step has always the work of 128 threads.
template <Math kMathOf, int kChunksOf>
struct RowsConfig {
  static constexpr Math kMath = kMathOf;
  static constexpr int kChunks = kChunksOf;
  static constexpr int kWidth = 32 / kChunks;   // output columns of a strip
  static constexpr int kRows = kTall * kWidth;  // of the A tile
  static constexpr int kPass = 64 * kChunks;    // output channels of one product
  static constexpr int kInputWidth = kWidth + kTaps - 1;
  static constexpr int kPixelBytes = kChunks * kRowBytes;
  static constexpr int kInputRowBytes = kInputWidth * kPixelBytes;
  static constexpr int kRingBytes = kRingRows * kInputRowBytes;
  static constexpr int kABytes = kChunks * kRows * kRowBytes;
  static constexpr int kWarpRows = kRows / 2;
  static constexpr int kWarpColumns = kPass / 2;
  static constexpr int kRowTiles = kWarpRows / kFragmentRows;
  static constexpr int kColumnTiles = kWarpColumns / kBlockColumns;

  // The epilogue's, for each of the four warps. With one pass they lie in the A tile, which is then free.
  using Staged = StagedFragment<kColumnTiles>;
  static __host__ IK_DEVICE int passes(int padded_K) { return padded_K / kPass; }
  static __host__ IK_DEVICE int worker_bytes(int padded_K) {
    return kRingBytes + kABytes + (passes(padded_K) == 1 ? 0 : kWorkerThreads / 32 * Staged::kBytes);
  }

  // Of a block, in this order: pointwise weights, what all workers read, workers.
  struct Shared {
    float taps[kTaps * kTaps + 1][kChunks * Format<kMath>::kChannels];  // depthwise weights, then their bias
    ScaleShiftTile<kMostColumns> scale_shift;
  };
  static __host__ IK_DEVICE int weight_bytes(int padded_K) { return padded_K * kPixelBytes; }
  static __host__ IK_DEVICE int shared_bytes(int padded_K, int workers) {
    return weight_bytes(padded_K) + static_cast<int>(sizeof(Shared)) + workers * worker_bytes(padded_K);
  }
};

// A run of output rows of a strip.
struct RowsItem {
  int image, q0, p0, end;  // end: one past the last output row

  template <typename Config>
  static IK_DEVICE RowsItem at(const RowsArgs& args, int item) {
    const int strip = args.by_segments.quotient(item);
    const int image = args.by_strips.quotient(strip);
    const int p0 = (item - strip * static_cast<int>(args.by_segments.divisor)) * args.segment_rows;
    const int q0 = (strip - image * static_cast<int>(args.by_strips.divisor)) * Config::kWidth;
    const int end = p0 + args.segment_rows;
    return {image, q0, p0, end < args.P ? end : args.P};
  }
};

template <typename Config>
struct RowsWorker {
  using Form = Format<Config::kMath>;
  using Type = typename Form::Type;
  using Product = WarpProduct<Config::kMath, Config::kRowTiles, Config::kColumnTiles>;
  static constexpr int kChannels = 4;  // of a thread
  static constexpr int kPixels = 4;    // of a thread in each row
  using Sums = float[kTall][kPixels][kChannels];
  using Taps = float[kTaps * kTaps + 1][kChannels];

  const RowsArgs& args;
  const typename Config::Shared& shared;
  const uint32_t weights;  // pointwise
  const uint32_t ring, a;
  const int barrier;
  const int thread = static_cast<int>(threadIdx.x) % kWorkerThreads;
  const int warp = thread / 32;
  const int lane = thread % 32;

  // The depthwise sums of this thread: four channels of a chunk, and four columns.
  const int chunk = warp % Config::kChunks;
  const int part = lane % kLanesOfRow;
  const int column = (warp / Config::kChunks * 2 + lane / kLanesOfRow) * kPixels;

  IK_DEVICE RowsWorker(const RowsArgs& args_, const typename Config::Shared& shared_, uint32_t weights_, uint32_t own,
                       int worker)
      : args(args_), shared(shared_), weights(weights_), ring(own), a(own + Config::kRingBytes), barrier(1 + worker) {}

  IK_DEVICE void wait() const { bar_sync(barrier, kWorkerThreads); }

  // ---- loads

  // Input rows first .. first + count - 1 of the item into the ring, from slot on; one warp loads a row.
  IK_DEVICE void load_rows(const RowsItem& item, int first, int count, int slot) const {
    for (int row = warp; row < count; row += kWorkerThreads / 32) {
      const int place = slot + row < kRingRows ? slot + row : slot + row - kRingRows;
      load_row(item, item.p0 - args.pad_h + first + row, ring + place * Config::kInputRowBytes);
    }
  }

  IK_DEVICE void load_row(const RowsItem& item, int h, uint32_t to) const {
    constexpr int kVectors = Config::kPixelBytes / 16;
    constexpr int kAtOnce = 32 / kVectors;
    constexpr int kLoads = (Config::kInputWidth + kAtOnce - 1) / kAtOnce;
    // What each vector needs, kept from step to step, would take more registers than there are.
    const int in_row = recomputed(lane / kVectors);
    const int c = lane % kVectors * Form::kVector;
    const int w = item.q0 - args.pad_w + in_row;
    const bool has_row = c < args.C && static_cast<unsigned>(h) < static_cast<unsigned>(args.H);
    const Type* image = static_cast<const Type*>(args.x) + item.image * args.x_stride_n;
    int offset = h * args.x_stride_h + w * args.x_stride_w + c;
    to += lane * 16;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (Config::kInputWidth % kAtOnce != 0 && i * kAtOnce + in_row >= Config::kInputWidth) break;
      const bool inside = has_row && static_cast<unsigned>(w + i * kAtOnce) < static_cast<unsigned>(args.W);
      cp_async16(to + i * 32 * 16, image + (inside ? offset : 0), inside ? 16 : 0);
      offset += kAtOnce * args.x_stride_w;
    }
  }

  // ---- depthwise sums

  static IK_DEVICE void add_input(Sums& sums, const Taps& taps, int row, int input_column, uint2 bits) {
    float values[kChannels];
    const float2 low = Pair<Type>::unpack(bits.x);
    const float2 high = Pair<Type>::unpack(bits.y);
    values[0] = low.x;
    values[1] = low.y;
    values[2] = high.x;
    values[3] = high.y;
#pragma unroll
    for (int r = 0; r < kTaps; ++r) {
#pragma unroll
      for (int s = 0; s < kTaps; ++s) {
        const int p = row - r;
        const int q = input_column - s;
        if (p < 0 || p >= kTall || q < 0 || q >= kPixels) continue;
#pragma unroll
        for (int i = 0; i < kChannels; ++i) sums[p][q][i] = fmaf(taps[r * kTaps + s][i], values[i], sums[p][q][i]);
      }
    }
  }

  IK_DEVICE void store_row(float (&sums)[kPixels][kChannels], int row) const {
#pragma unroll
    for (int q = 0; q < kPixels; ++q) {
      activate(args.mid_activation, sums[q]);
      const uint2 bits = make_uint2(Pair<Type>::pack(sums[q][0], sums[q][1]), Pair<Type>::pack(sums[q][2], sums[q][3]));
      const int tile_row = row * Config::kWidth + column + q;
      sts64(a + chunk * Config::kRows * kRowBytes + swizzled(tile_row, part / 2) + part % 2 * 8, bits);
    }
  }

  // slot: where the first input row of the step lies in the ring.
  IK_DEVICE void depthwise(int slot) const {
    const uint32_t bound = Form::lower_bound(args.input_relu);
    const uint32_t from = ring + column * Config::kPixelBytes + chunk * kRowBytes + part * 8;
    Taps taps;  // read again in every step: the product needs their registers
    const uint32_t from_taps = smem_u32(shared.taps) + (chunk * Form::kChannels + part * kChannels) * sizeof(float);
#pragma unroll
    for (int tap = 0; tap <= kTaps * kTaps; ++tap) {
      Format<Math::kFp32>::unpack(lds128(from_taps + tap * sizeof(shared.taps[0])), taps[tap]);
    }
    Sums sums;
#pragma unroll
    for (int p = 0; p < kTall; ++p) {
#pragma unroll
      for (int q = 0; q < kPixels; ++q) {
#pragma unroll
        for (int i = 0; i < kChannels; ++i) sums[p][q][i] = taps[kTaps * kTaps][i];
      }
    }
#pragma unroll
    for (int row = 0; row < kStepRows; ++row) {
      const int place = slot + row < kRingRows ? slot + row : slot + row - kRingRows;
      const uint32_t from_row = from + place * Config::kInputRowBytes;
#pragma unroll
      for (int input_column = 0; input_column < kPixels + kTaps - 1; ++input_column) {
        uint2 bits = lds64(from_row + input_column * Config::kPixelBytes);
        bits.x = Form::at_least(bits.x, bound);
        bits.y = Form::at_least(bits.y, bound);
        add_input(sums, taps, row, input_column, bits);
      }
      if (row >= kTaps - 1) store_row(sums[row - kTaps + 1], row - kTaps + 1);
    }
  }

  // ---- product

  IK_DEVICE OutputPixel output_pixel(const RowsItem& item, int p0, int row) const {
    const int p = p0 + row / Config::kWidth;
    const int q = item.q0 + row % Config::kWidth;
    return {p < item.end && q < args.Q, item.image * args.y_stride_n + p * args.y_stride_h + q * args.y_stride_w,
            item.image * args.residual_stride_n + p * args.residual_stride_h + q * args.residual_stride_w};
  }

  IK_DEVICE void multiply_and_store(const RowsItem& item, int p0) const {
    const int row0 = recomputed(warp / 2 * Config::kWarpRows);
#pragma unroll 1
    for (int pass = 0; pass < args.padded_K; pass += Config::kPass) {
      const int column0 = pass + warp % 2 * Config::kWarpColumns;
      typename Product::Sums sums = {};
#pragma unroll
      for (int k = 0; k < Config::kChunks; ++k) {
        Product::add(sums, a + (k * Config::kRows + row0) * kRowBytes,
                     weights + (k * args.padded_K + column0) * kRowBytes, lane);
      }
      if (Config::passes(args.padded_K) == 1) wait();  // nobody needs the A tile any more
      store(sums, item, p0, row0, column0);
    }
  }

  IK_DEVICE void store(const typename Product::Sums& sums, const RowsItem& item, int p0, int row0, int column0) const {
    const uint32_t staged =
        a + (Config::passes(args.padded_K) == 1 ? 0 : Config::kABytes) + warp * Config::Staged::kBytes;
#pragma unroll
    for (int f = 0; f < Config::kRowTiles; ++f) {
      const auto pixel_of = [&](int row) { return output_pixel(item, p0, row0 + f * kFragmentRows + row); };
      store_fragment_staged<Type, Config::kColumnTiles>(sums[f], staged, pixel_of, column0, shared.scale_shift, column0,
                                                        args.epilogue);
    }
  }

  // ---- an item from top to bottom

  // Nobody waits behind the last step: the barrier before its product is behind all reads of the ring, and the next
  // item's first barrier before all writes of the A tile.
  IK_DEVICE void run(const RowsItem& item) const {
    load_rows(item, 0, kStepRows, 0);
    cp_async_commit();
    int slot = 0;
    for (int p0 = item.p0; p0 < item.end; p0 += kTall) {
      cp_async_wait<0>();
      wait();
      if (p0 + kTall < item.end) {
        const int next = slot + kStepRows;
        load_rows(item, p0 - item.p0 + kStepRows, kTall, next < kRingRows ? next : next - kRingRows);
      }
      cp_async_commit();
      depthwise(slot);
      wait();
      multiply_and_store(item, p0);
      slot = slot + kTall < kRingRows ? slot + kTall : slot + kTall - kRingRows;
    }
  }
};

// The pointwise weights as rows of 128 bytes, chunk by chunk.
template <typename Config>
IK_DEVICE void load_resident_weights(const RowsArgs& args, uint32_t weights) {
  using Form = Format<Config::kMath>;
  using Type = typename Form::Type;
  const int threads = static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < Config::kChunks * args.padded_K * kRowVectors; i += threads) {
    const int vector = i % kRowVectors;
    const int row = i / kRowVectors;
    const int chunk = Config::kChunks > 1 && row >= args.padded_K ? 1 : 0;
    const int k = row - chunk * args.padded_K;
    const int c = chunk * Form::kChannels + vector * Form::kVector;
    const bool inside = k < args.epilogue.K && c < args.packed_C;
    const Type* from = static_cast<const Type*>(args.pointwise) + (inside ? k * args.packed_C + c : 0);
    cp_async16(weights + chunk * args.padded_K * kRowBytes + swizzled(k, vector), from, inside ? 16 : 0);
  }
}

template <typename Config>
IK_DEVICE void load_taps(const RowsArgs& args, typename Config::Shared& shared) {
  const auto* depthwise = static_cast<const typename Format<Config::kMath>::Type*>(args.depthwise);
  constexpr int kChannels = Config::kChunks * Format<Config::kMath>::kChannels;
  constexpr int kBias = kTaps * kTaps;
  for (int i = static_cast<int>(threadIdx.x); i < (kBias + 1) * kChannels; i += static_cast<int>(blockDim.x)) {
    const int tap = i / kChannels;
    const int c = i - tap * kChannels;
    float value = 0.0f;
    if (c < args.C && tap < kBias) value = to_float(depthwise[tap * args.packed_C + c]);
    if (c < args.C && tap == kBias && args.depthwise_bias) value = args.depthwise_bias[c];
    shared.taps[tap][c] = value;
  }
}

template <typename Config>
__global__ void __launch_bounds__(kMostWorkers* kWorkerThreads, 1) rows_kernel(const __grid_constant__ RowsArgs args) {
  using Shared = typename Config::Shared;
  IK_DYNAMIC_SHARED(memory);
  const uint32_t weights = smem_u32(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory + Config::weight_bytes(args.padded_K));
  load_resident_weights<Config>(args, weights);
  cp_async_commit();
  load_taps<Config>(args, shared);
  shared.scale_shift.load(args.epilogue, 0, threadIdx.x, blockDim.x);
  cp_async_wait<0>();
  __syncthreads();

  const int workers = static_cast<int>(blockDim.x) / kWorkerThreads;
  const int worker = static_cast<int>(threadIdx.x) / kWorkerThreads;
  const uint32_t own = weights + Config::shared_bytes(args.padded_K, worker);
  const RowsWorker<Config> self(args, shared, weights, own, worker);
  const int step = static_cast<int>(gridDim.x) * workers;
  for (int item = worker * static_cast<int>(gridDim.x) + blockIdx.x; item < args.items; item += step) {
    self.run(RowsItem::at<Config>(args, item));
  }
}

}  // namespace ik::cuda::separable
