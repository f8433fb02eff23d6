// From accumulators to memory: scale, shift, residual, activation, store with a row stride, and the statistics of a
// tile. A fragment is what mma.sync m16n8 and wgmma m64 share: a warp holds 16 rows of 8 columns times kBlocks, and in
// block j the thread of lane 4 g + q has columns 2 q and 2 q + 1 of row g in [4 j], [4 j + 1], of row g + 8 in
// [4 j + 2], [4 j + 3].
#pragma once
#include "cuda/activation.cuh"
#include "cuda/element.cuh"
#include "cuda/primitives.cuh"

namespace ik::cuda {

constexpr int kBlockColumns = 8;
constexpr int kFragmentRows = 16;

struct Epilogue {
  const float* scale;    // [K]; null = 1
  const float* shift;    // [K]; null = 0
  const void* residual;  // null = none
  void* y;
  int K;
  Activation activation;
  bool wide_residual;  // 16-byte accesses: K is a multiple of 8, pointer and strides are multiples of 16 bytes
  bool wide_y;
};

// Where one row of the tile goes, in elements.
struct OutputPixel {
  bool inside;
  int64_t y;
  int64_t residual;
};

// Copies scale and shift of kColumns columns to shared memory, ones and zeros beyond K. A barrier has to follow.
template <int kColumns>
struct ScaleShiftTile {
  float scale[kColumns];
  float shift[kColumns];

  IK_DEVICE void load(const Epilogue& args, int column0, int thread, int threads) {
    for (int i = thread; i < kColumns; i += threads) {
      const bool inside = column0 + i < args.K;
      scale[i] = inside && args.scale ? args.scale[column0 + i] : 1.0f;
      shift[i] = inside && args.shift ? args.shift[column0 + i] : 0.0f;
    }
  }
};

// Lane q of a quad exchanges its register p for lane p's register q.
IK_DEVICE void transpose_quad(uint32_t (&r)[4], int q) {
  constexpr uint32_t kAllLanes = 0xffffffffu;
  const bool odd = q & 1;
  const uint32_t first = __shfl_xor_sync(kAllLanes, odd ? r[0] : r[1], 1);
  const uint32_t second = __shfl_xor_sync(kAllLanes, odd ? r[2] : r[3], 1);
  r[0] = odd ? first : r[0];
  r[1] = odd ? r[1] : first;
  r[2] = odd ? second : r[2];
  r[3] = odd ? r[3] : second;
  const bool upper = q & 2;
  const uint32_t third = __shfl_xor_sync(kAllLanes, upper ? r[0] : r[2], 2);
  const uint32_t fourth = __shfl_xor_sync(kAllLanes, upper ? r[1] : r[3], 2);
  r[0] = upper ? third : r[0];
  r[1] = upper ? fourth : r[1];
  r[2] = upper ? r[2] : third;
  r[3] = upper ? r[3] : fourth;
}

// Four blocks of one row as this thread holds them: columns 8 b + 2 q and 8 b + 2 q + 1 for b = 0..3.
constexpr int kChunkBlocks = 4;
struct ChunkRow {
  float value[2 * kChunkBlocks];
};

// The blocks of a chunk that lie inside the K columns and inside the fragment.
IK_DEVICE int blocks_inside(int column0, int blocks, int K) {
  const int inside = (K - column0 + kBlockColumns - 1) / kBlockColumns;
  return inside < blocks ? inside : blocks;
}

template <typename T>
IK_DEVICE void add_chunk_by_element(const T* row, int column0, int blocks, int K, ChunkRow& chunk) {
#pragma unroll
  for (int b = 0; b < kChunkBlocks; ++b) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = column0 + b * kBlockColumns + 2 * (threadIdx.x % 4) + e;
      if (b < blocks && column < K) chunk.value[2 * b + e] += to_float(row[column]);
    }
  }
}

template <typename T>
IK_DEVICE void store_chunk_by_element(T* row, int column0, int blocks, int K, const ChunkRow& chunk) {
#pragma unroll
  for (int b = 0; b < kChunkBlocks; ++b) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = column0 + b * kBlockColumns + 2 * (threadIdx.x % 4) + e;
      if (b < blocks && column < K) row[column] = Element<T>::from_float(chunk.value[2 * b + e]);
    }
  }
}

// Adds the residual's row to the chunk. All lanes of the warp take part; `inside` may differ between rows.
template <typename T>
IK_DEVICE void add_chunk(const T* row, bool inside, int column0, int blocks, int K, bool wide, ChunkRow& chunk) {
  const int q = threadIdx.x % 4;
  if (!wide) {
    if (inside) add_chunk_by_element(row, column0, blocks, K, chunk);
    return;
  }
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int b = 0; b < kChunkBlocks; ++b) {
      if (!inside || b >= blocks) continue;
      const float2 pair = *reinterpret_cast<const float2*>(row + column0 + b * kBlockColumns + 2 * q);
      chunk.value[2 * b] += pair.x;
      chunk.value[2 * b + 1] += pair.y;
    }
  } else {
    uint4 vector = make_uint4(0, 0, 0, 0);
    if (inside && q < blocks) vector = ldg128_ordered(row + column0 + q * kBlockColumns);
    uint32_t packed[4] = {vector.x, vector.y, vector.z, vector.w};
    transpose_quad(packed, q);
#pragma unroll
    for (int b = 0; b < kChunkBlocks; ++b) {
      const float2 pair = Pair<T>::unpack(packed[b]);
      chunk.value[2 * b] += pair.x;
      chunk.value[2 * b + 1] += pair.y;
    }
  }
}

template <typename T>
IK_DEVICE void store_chunk(T* row, bool inside, int column0, int blocks, int K, bool wide, const ChunkRow& chunk) {
  const int q = threadIdx.x % 4;
  if (!wide) {
    if (inside) store_chunk_by_element(row, column0, blocks, K, chunk);
    return;
  }
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int b = 0; b < kChunkBlocks; ++b) {
      if (!inside || b >= blocks) continue;
      *reinterpret_cast<float2*>(row + column0 + b * kBlockColumns + 2 * q) =
          make_float2(chunk.value[2 * b], chunk.value[2 * b + 1]);
    }
  } else {
    uint32_t packed[4];
#pragma unroll
    for (int b = 0; b < kChunkBlocks; ++b) {
      packed[b] = Pair<T>::pack(chunk.value[2 * b], chunk.value[2 * b + 1]);
    }
    transpose_quad(packed, q);
    if (inside && q < blocks) {
      stg128(row + column0 + q * kBlockColumns, make_uint4(packed[0], packed[1], packed[2], packed[3]));
    }
  }
}

// One fragment: rows pixel[0] and pixel[1] of this thread, columns column0 and on; `tile` and column_in_tile say where
// their scale and shift are. All lanes of the warp take part.
template <typename T, int kBlocks, int kTileColumns>
IK_DEVICE void store_fragment(const float (&acc)[4 * kBlocks], const OutputPixel (&pixel)[2], int column0,
                              const ScaleShiftTile<kTileColumns>& tile, int column_in_tile, const Epilogue& args) {
  const int q = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < kBlocks; j += kChunkBlocks) {
    const int column = column0 + j * kBlockColumns;
    if (column >= args.K) return;
    const int blocks = blocks_inside(column, kBlocks - j, args.K);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      ChunkRow chunk = {};
#pragma unroll
      for (int b = 0; b < kChunkBlocks; ++b) {
        if (j + b >= kBlocks) continue;
        const int in_tile = column_in_tile + (j + b) * kBlockColumns + 2 * q;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          chunk.value[2 * b + e] = fmaf(acc[4 * (j + b) + 2 * h + e], tile.scale[in_tile + e], tile.shift[in_tile + e]);
        }
      }
      if (args.residual) {
        add_chunk(static_cast<const T*>(args.residual) + pixel[h].residual, pixel[h].inside, column, blocks, args.K,
                  args.wide_residual, chunk);
      }
      activate(args.activation, chunk.value);
      store_chunk(static_cast<T*>(args.y) + pixel[h].y, pixel[h].inside, column, blocks, args.K, args.wide_y, chunk);
    }
  }
}

// ---- statistics of the stored values, column by column

// A term of a sum over rows: the value, or the square of its distance from the tile's mean.
struct ValueTerm {
  IK_DEVICE float operator()(float value, int) const { return value; }
};
struct SquareTerm {
  const float* mean;  // [columns of the tile]
  IK_DEVICE float operator()(float value, int column_in_tile) const {
    const float distance = value - mean[column_in_tile];
    return distance * distance;
  }
};

// Adds the terms of a warp's rows into sums[columns of the tile]; rows_inside has bit 2 f + h for row g + 8 h of
// fragment f. All lanes of the warp take part; the order of additions is fixed.
template <typename T, int kFragments, int kBlocks, int kTileColumns, typename Term>
IK_DEVICE void sum_rows(const float (&acc)[kFragments][4 * kBlocks], uint32_t rows_inside,
                        const ScaleShiftTile<kTileColumns>& tile, int column_in_tile, Term term, float* sums) {
  constexpr uint32_t kAllLanes = 0xffffffffu;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = column_in_tile + j * kBlockColumns + 2 * (lane % 4) + e;
      const float shift = tile.shift[column];
      float sum = 0.0f;
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float value = rounded<T>(acc[f][4 * j + 2 * h + e] + shift);
          sum += (rows_inside >> (2 * f + h)) & 1 ? term(value, column) : 0.0f;
        }
      }
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
      if (lane < 4) sums[column] = sum;
    }
  }
}

}  // namespace ik::cuda
