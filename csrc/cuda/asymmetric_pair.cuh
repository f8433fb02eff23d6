// asymmetric_pair in one kernel. The second window lies along one axis, so its outputs on a line of that axis need the
// intermediate of this line only: a block takes whole lines, computes their intermediate with the machinery of
// conv2d_bn_act into shared memory, and multiplies the second weight with rows of that, shifted by the tap.
#pragma once
#include "cuda/conv2d_mainloop.cuh"
#include "cuda/staged_epilogue.cuh"

namespace ik::cuda {

using PairTile = TileShape<128, 128, 2, 4>;

template <typename T>
constexpr int kPairStages = sizeof(T) == 2 ? 4 : 3;  // a float intermediate is twice as large

struct LineGeometry {
  bool vertical;  // lines are columns of the intermediate, else rows
  int count;      // of all images
  int per_tile;   // lines of a block
  int taps;       // of the second window
  int stride, pad, dilation;
  FastDivide length;      // of a line of the intermediate
  FastDivide out_length;  // of a line of the output
  FastDivide of_image;    // lines of an image
};

struct PairKernel {
  ConvGeometry first;
  Epilogue first_epilogue;  // of the intermediate: y and residual are unused
  LineGeometry lines;
  const void* second_weight;  // packed
  int tap_vectors;            // of the intermediate's channels
  int blocks;                 // of four vectors under one tap
  Epilogue second_epilogue;
  int64_t y_stride_n, y_stride_h, y_stride_w;  // elements
};

// The intermediate lies in blocks of 64 bytes of channels; behind a block's rows is one of zeros.
constexpr int kZeroRow = PairTile::kRows;
constexpr int kIntermediateBytes = (PairTile::kRows + 2) * kStepBytes;

template <typename T>
struct PairShared {
  using Staged = StagedTile<2 * kFragmentRows, PairTile::kWarpColumns>;
  union {
    ConvRing<PairTile, kPairStages<T>> ring;
    unsigned char staged[PairTile::kThreads / 32][Staged::kBytes];
  };
  unsigned char intermediate[1][kIntermediateBytes];  // [blocks]

  static constexpr size_t bytes(int blocks) {
    return sizeof(PairShared) + static_cast<size_t>(blocks - 1) * kIntermediateBytes;
  }
};

// The pixel of a row of the tile, where lines have `length` pixels.
IK_DEVICE PixelPosition line_position(const LineGeometry& lines, const FastDivide& length, int first_line, int row) {
  const int in_tile = length.quotient(row);
  const int along = row - in_tile * static_cast<int>(length.divisor);
  const int line = first_line + in_tile;
  if (in_tile >= lines.per_tile || line >= lines.count) return {0, 0, 0, false};
  const int n = lines.of_image.quotient(line);
  const int across = line - n * static_cast<int>(lines.of_image.divisor);
  return lines.vertical ? PixelPosition{n, along, across, true} : PixelPosition{n, across, along, true};
}

// Accumulators pass through the warp's staging area two fragments at a time; use(staged, first row of the warp's tile).
template <typename Staged, typename Use>
IK_DEVICE void through_staging(const Accumulators<PairTile>& acc, unsigned char* area, Use use) {
  const Staged staged{smem_u32(area)};
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int f = 0; f < PairTile::kFragments; f += 2) {
    staged.put(acc[f], 0, lane);
    staged.put(acc[f + 1], kFragmentRows, lane);
    __syncwarp();
    use(staged, f * kFragmentRows);
    __syncwarp();
  }
}

template <typename T>
IK_DEVICE void store_intermediate(const float (&values)[kBlockColumns], uint32_t intermediate, int row, int column) {
  constexpr int kVector = kVectorBytes / sizeof(T);
  const int vector = column / kVector;
  const uint32_t block = intermediate + vector / kStepVectors * kIntermediateBytes;
  if constexpr (sizeof(T) == 4) {
    sts128(block + stage_offset(row, vector % kStepVectors),
           make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                      __float_as_uint(values[3])));
    sts128(block + stage_offset(row, vector % kStepVectors + 1),
           make_uint4(__float_as_uint(values[4]), __float_as_uint(values[5]), __float_as_uint(values[6]),
                      __float_as_uint(values[7])));
  } else {
    sts128(block + stage_offset(row, vector % kStepVectors),
           make_uint4(Pair<T>::pack(values[0], values[1]), Pair<T>::pack(values[2], values[3]),
                      Pair<T>::pack(values[4], values[5]), Pair<T>::pack(values[6], values[7])));
  }
}

// Scale, shift and activation of rows row0.. and columns column0.. of the intermediate. Columns beyond K1 become zero.
template <typename T, typename Staged>
IK_DEVICE void finish_intermediate(const Staged& staged, int row0, int column0, const Epilogue& args, int columns,
                                   uint32_t intermediate) {
  const int lane = threadIdx.x % 32;
  const int block = lane % Staged::kBlocks;
  const int column = column0 + block * kBlockColumns;
  if (column >= columns) return;
  float scale[kBlockColumns];
  float shift[kBlockColumns];
  load_columns(args.scale ? args.scale + column : nullptr, args.K - column, 1.0f, scale);
  load_columns(args.shift ? args.shift + column : nullptr, args.K - column, 0.0f, shift);
#pragma unroll 2
  for (int row = lane / Staged::kBlocks; row < Staged::kRows; row += Staged::kRowsPerPass) {
    float values[kBlockColumns];
    staged.take(row, block, values);
#pragma unroll
    for (int i = 0; i < kBlockColumns; ++i) values[i] = fmaf(values[i], scale[i], shift[i]);
    activate(args.activation, values);
    store_intermediate<T>(values, intermediate, row0 + row, column);
  }
}

template <typename Product>
IK_DEVICE void compute_intermediate(const PairKernel& args, int first_line, PairShared<typename Product::Type>& shared,
                                    const StageProduct<Product, PairTile>& product, int warp_row, int warp_column) {
  using T = typename Product::Type;
  using Staged = typename PairShared<T>::Staged;
  constexpr int kBlockChannels = kStepBytes / sizeof(T);
  const int columns = args.blocks * kBlockChannels;
  const uint32_t intermediate = smem_u32(shared.intermediate);
  const auto locate = [&](int row) { return line_position(args.lines, args.lines.length, first_line, row); };
  for (int first_column = 0; first_column < columns; first_column += PairTile::kColumns) {
    Accumulators<PairTile> acc = {};
    VectorLoader<PairTile, T> loader(args.first, threadIdx.x, locate);
    WeightLoader<PairTile> weights(args.first, first_column, threadIdx.x);
    const bool takes_part = first_column + warp_column < args.first.K;
    accumulate(args.first, loader, weights, shared.ring, product, takes_part, acc);
    __syncthreads();
    through_staging<Staged>(acc, shared.staged[threadIdx.x / 32], [&](const Staged& staged, int row) {
      finish_intermediate<T>(staged, warp_row + row, first_column + warp_column, args.first_epilogue, columns,
                             intermediate);
    });
    __syncthreads();
  }
}

// The second packed weight, tap by tap in blocks of four vectors.
struct TapWeightLoader {
  static constexpr int kThreadsPerVector = PairTile::kThreads / kStepVectors;
  static constexpr int kCount = PairTile::kColumns / kThreadsPerVector;
  const char* base;
  int64_t rows_bytes;
  int rows;
  int vector;  // under the tap
  uint32_t offset;

  IK_DEVICE TapWeightLoader(const PairKernel& args, int first_column, int thread)
      : vector(thread % kStepVectors), offset(stage_offset(thread / kStepVectors, thread % kStepVectors)) {
    const int64_t row_bytes = static_cast<int64_t>(args.lines.taps) * args.tap_vectors * kVectorBytes;
    const int column = first_column + thread / kStepVectors;
    base = static_cast<const char*>(args.second_weight) + column * row_bytes + vector * kVectorBytes;
    rows_bytes = kThreadsPerVector * row_bytes;
    rows = (args.second_epilogue.K - column + kThreadsPerVector - 1) / kThreadsPerVector;
  }

  IK_DEVICE void fetch(const PairKernel& args, uint32_t stage) {
    const char* from = base;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool inside = i < rows && vector < args.tap_vectors;
      cp_async16(stage + offset + i * kThreadsPerVector * kStepBytes, from, inside ? kVectorBytes : 0);
      from += rows_bytes;
    }
    vector += kStepVectors;
    base += kStepBytes;
    if (vector >= args.blocks * kStepVectors) {
      vector -= args.blocks * kStepVectors;
      base += (args.tap_vectors - args.blocks * kStepVectors) * kVectorBytes;
    }
  }
};

// Rows of the intermediate under a tap, for the output rows that a lane multiplies.
template <typename Product>
struct TapRows {
  using Stage = StageProduct<Product, PairTile>;
  int first_row[Stage::kLeftRows];  // of the line
  int position[Stage::kLeftRows];   // of tap 0 in it
  uint32_t address[Stage::kLeftRows];

  IK_DEVICE TapRows(const LineGeometry& lines, const Stage& product) {
#pragma unroll
    for (int i = 0; i < Stage::kLeftRows; ++i) {
      const int row = product.left_row + i * Stage::kLeftRowStep;
      const int line = lines.out_length.quotient(row);
      const int out = row - line * static_cast<int>(lines.out_length.divisor);
      const int length = static_cast<int>(lines.length.divisor);
      first_row[i] = line * length;
      position[i] = line < lines.per_tile ? out * lines.stride - lines.pad : length;  // behind the lines: never inside
    }
  }

  IK_DEVICE void move_to(int tap, const LineGeometry& lines, uint32_t intermediate, int vector) {
#pragma unroll
    for (int i = 0; i < Stage::kLeftRows; ++i) {
      const int along = position[i] + tap * lines.dilation;
      const bool inside = static_cast<unsigned>(along) < lines.length.divisor;
      address[i] = intermediate + stage_offset(inside ? first_row[i] + along : kZeroRow, vector);
    }
  }
};

template <typename Product>
IK_DEVICE void accumulate_second(const PairKernel& args, int first_column, PairShared<typename Product::Type>& shared,
                                 const StageProduct<Product, PairTile>& product, bool takes_part,
                                 Accumulators<PairTile>& acc) {
  constexpr int kStages = kPairStages<typename Product::Type>;
  TapWeightLoader weights(args, first_column, threadIdx.x);
  TapRows<Product> rows(args.lines, product);
  const uint32_t right = smem_u32(shared.ring.right);
  const uint32_t intermediate = smem_u32(shared.intermediate);
  const int steps = args.lines.taps * args.blocks;
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < steps) weights.fetch(args, right + stage * PairTile::kRightBytes);
    cp_async_commit();
  }
  int reading = 0;
  int filling = kStages - 1;
  int tap = 0;
  int block = 0;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < steps) weights.fetch(args, right + filling * PairTile::kRightBytes);
    cp_async_commit();
    if (block == 0) rows.move_to(tap, args.lines, intermediate, product.left_vector);
    if (takes_part) {
      product.add_rows(acc, right + reading * PairTile::kRightBytes, [&](int i, uint32_t further) {
        return (rows.address[i] ^ further) + block * kIntermediateBytes;
      });
    }
    filling = reading;
    reading = reading + 1 == kStages ? 0 : reading + 1;
    if (++block == args.blocks) {
      block = 0;
      ++tap;
    }
  }
}

IK_DEVICE OutputPixel output_pixel(const PairKernel& args, const PixelPosition& at) {
  return {at.inside, at.n * args.y_stride_n + at.p * args.y_stride_h + at.q * args.y_stride_w, 0};
}

template <typename Product>
__global__ void __launch_bounds__(PairTile::kThreads) asymmetric_pair_kernel(const __grid_constant__ PairKernel args) {
  IK_DYNAMIC_SHARED(bytes);
  using T = typename Product::Type;
  using Staged = typename PairShared<T>::Staged;
  PairShared<T>& shared = *reinterpret_cast<PairShared<T>*>(bytes);
  const int warp = threadIdx.x / 32;
  const int warp_row = warp % PairTile::kWarpsDown * PairTile::kWarpRows;
  const int warp_column = warp / PairTile::kWarpsDown * PairTile::kWarpColumns;
  const int first_line = static_cast<int>(blockIdx.x) * args.lines.per_tile;
  const StageProduct<Product, PairTile> product(warp_row, warp_column, threadIdx.x % 32);

  const uint32_t intermediate = smem_u32(shared.intermediate);
  for (int i = threadIdx.x; i < args.blocks * kStepVectors; i += PairTile::kThreads) {
    sts128(intermediate + i / kStepVectors * kIntermediateBytes + stage_offset(kZeroRow, i % kStepVectors),
           make_uint4(0, 0, 0, 0));
  }
  compute_intermediate(args, first_line, shared, product, warp_row, warp_column);

  for (int first_column = 0; first_column < args.second_epilogue.K; first_column += PairTile::kColumns) {
    Accumulators<PairTile> acc = {};
    const bool takes_part = first_column + warp_column < args.second_epilogue.K;
    accumulate_second(args, first_column, shared, product, takes_part, acc);
    __syncthreads();
    through_staging<Staged>(acc, shared.staged[warp], [&](const Staged& staged, int row) {
      store_staged<T>(staged, first_column + warp_column, args.second_epilogue, [&](int i) {
        return output_pixel(args, line_position(args.lines, args.lines.out_length, first_line, warp_row + row + i));
      });
    });
    __syncthreads();
  }
}

}  // namespace ik::cuda
