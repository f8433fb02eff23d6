// The epilogue for many accumulators: a warp puts its fragments (epilogue.cuh) down in shared memory and takes them up
// again eight columns of a row at a time, in a loop that is short, uses wide accesses and needs no shuffles.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/epilogue.cuh"

namespace ik::cuda {

template <int kRowsValue, int kColumnsValue>
struct StagedTile {
  static constexpr int kRows = kRowsValue;
  static constexpr int kColumns = kColumnsValue;
  static constexpr int kBlocks = kColumns / kBlockColumns;
  static constexpr int kRowBytes = kColumns * 4;
  static constexpr int kBytes = kRows * kRowBytes;
  static constexpr int kRowsPerPass = 32 / kBlocks;
  static_assert(kBlocks == 4 || kBlocks == 8, "the swizzle is for 32 and 64 columns");

  uint32_t base;  // in shared memory, a multiple of 16; one tile for each warp

  // Half a block of a row, 16 bytes. Neither put nor take has bank conflicts.
  IK_DEVICE uint32_t address(int row, int block, int half) const {
    const int place =
        kBlocks == 8 ? half * 8 + (block ^ (row & 7) ^ (half * 4)) : (half ^ (row & 1)) * 4 + (block ^ (row & 3));
    return base + static_cast<uint32_t>(row * kRowBytes + place * 16);
  }

  // The fragment whose first row is row0.
  IK_DEVICE void put(const float (&acc)[4 * kBlocks], int row0, int lane) const {
    const int q = lane % 4;
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint2 pair = make_uint2(__float_as_uint(acc[4 * j + 2 * h]), __float_as_uint(acc[4 * j + 2 * h + 1]));
        sts64(address(row0 + lane / 4 + 8 * h, j, q / 2) + q % 2 * 8, pair);
      }
    }
  }

  IK_DEVICE void take(int row, int block, float (&values)[kBlockColumns]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 v = lds128(address(row, block, half));
      values[4 * half] = __uint_as_float(v.x);
      values[4 * half + 1] = __uint_as_float(v.y);
      values[4 * half + 2] = __uint_as_float(v.z);
      values[4 * half + 3] = __uint_as_float(v.w);
    }
  }
};

IK_DEVICE void load_columns(const float* from, int count, float otherwise, float (&values)[kBlockColumns]) {
#pragma unroll
  for (int i = 0; i < kBlockColumns; ++i) values[i] = from && i < count ? from[i] : otherwise;
}

template <typename T>
IK_DEVICE void add_vector(const T* from, float (&values)[kBlockColumns]) {
  const uint4 first = ldg128_ordered(from);
  if constexpr (sizeof(T) == 4) {
    const uint4 second = ldg128_ordered(from + 4);
    const uint32_t bits[kBlockColumns] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
    for (int i = 0; i < kBlockColumns; ++i) values[i] += __uint_as_float(bits[i]);
  } else {
    const uint32_t bits[4] = {first.x, first.y, first.z, first.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = Pair<T>::unpack(bits[i]);
      values[2 * i] += pair.x;
      values[2 * i + 1] += pair.y;
    }
  }
}

template <typename T>
IK_DEVICE void store_vector(T* to, const float (&values)[kBlockColumns]) {
  if constexpr (sizeof(T) == 4) {
    stg128(to, make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                          __float_as_uint(values[3])));
    stg128(to + 4, make_uint4(__float_as_uint(values[4]), __float_as_uint(values[5]), __float_as_uint(values[6]),
                              __float_as_uint(values[7])));
  } else {
    stg128(to, make_uint4(Pair<T>::pack(values[0], values[1]), Pair<T>::pack(values[2], values[3]),
                          Pair<T>::pack(values[4], values[5]), Pair<T>::pack(values[6], values[7])));
  }
}

// Scale, shift, residual, activation and store of up to eight columns of a pixel.
template <typename T>
IK_DEVICE void finish_block(float (&values)[kBlockColumns], const OutputPixel& pixel, int column, int count,
                            const Epilogue& args) {
  if (args.residual) {
    const T* residual = static_cast<const T*>(args.residual) + pixel.residual + column;
    if (args.wide_residual) {
      add_vector(residual, values);
    } else {
#pragma unroll
      for (int i = 0; i < kBlockColumns; ++i) values[i] += i < count ? to_float(residual[i]) : 0.0f;
    }
  }
  activate(args.activation, values);
  T* y = static_cast<T*>(args.y) + pixel.y + column;
  if (args.wide_y) {
    store_vector(y, values);
  } else {
#pragma unroll
    for (int i = 0; i < kBlockColumns; ++i) {
      if (i < count) y[i] = Element<T>::from_float(values[i]);
    }
  }
}

// A warp's tile, whose first column is column0; locate(row) says where a row goes. __syncwarp must lie behind the puts.
template <typename T, typename Tile, typename Locate>
IK_DEVICE void store_staged(const Tile& tile, int column0, const Epilogue& args, Locate locate) {
  const int lane = threadIdx.x % 32;
  const int block = lane % Tile::kBlocks;
  const int column = column0 + block * kBlockColumns;
  const int count = args.K - column;
  if (count <= 0) return;
  float scale[kBlockColumns];
  float shift[kBlockColumns];
  load_columns(args.scale ? args.scale + column : nullptr, count, 1.0f, scale);
  load_columns(args.shift ? args.shift + column : nullptr, count, 0.0f, shift);
#pragma unroll 2
  for (int row = lane / Tile::kBlocks; row < Tile::kRows; row += Tile::kRowsPerPass) {
    float values[kBlockColumns];
    tile.take(row, block, values);
#pragma unroll
    for (int i = 0; i < kBlockColumns; ++i) values[i] = fmaf(values[i], scale[i], shift[i]);
    const OutputPixel pixel = locate(row);
    if (pixel.inside) finish_block<T>(values, pixel, column, count, args);
  }
}

// ---- statistics of the stored values, column by column

// A term of a sum over rows: the value, or the square of its distance from the mean of its column.
struct StagedValue {
  IK_DEVICE float operator()(float value, int) const { return value; }
};
struct StagedSquare {
  const float* mean;  // [columns of the warp's tile]
  IK_DEVICE float operator()(float value, int column) const {
    const float distance = value - mean[column];
    return distance * distance;
  }
};

// sums[column of the warp's tile] = the terms of rows [0, rows), in a fixed order. All lanes of the warp take part.
template <typename T, typename Tile, typename Term>
IK_DEVICE void sum_staged(const Tile& tile, int column0, int rows, const Epilogue& args, Term term, float* sums) {
  constexpr uint32_t kAllLanes = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  const int block = lane % Tile::kBlocks;
  const int column = column0 + block * kBlockColumns;
  float shift[kBlockColumns];
  load_columns(args.shift && column < args.K ? args.shift + column : nullptr, args.K - column, 0.0f, shift);
  float sum[kBlockColumns] = {};
  for (int row = lane / Tile::kBlocks; row < rows; row += Tile::kRowsPerPass) {
    float values[kBlockColumns];
    tile.take(row, block, values);
#pragma unroll
    for (int i = 0; i < kBlockColumns; ++i) {
      sum[i] += term(rounded<T>(values[i] + shift[i]), block * kBlockColumns + i);
    }
  }
#pragma unroll
  for (int i = 0; i < kBlockColumns; ++i) {
#pragma unroll
    for (int distance = Tile::kBlocks; distance < 32; distance *= 2) {
      sum[i] += __shfl_xor_sync(kAllLanes, sum[i], distance);
    }
    if (lane < Tile::kBlocks) sums[block * kBlockColumns + i] = sum[i];
  }
}

}  // namespace ik::cuda
