// Mean and sum of squared deviations of a warpgroup's rows, channel by channel, from accumulators in octets. The order
// of every sum is fixed.
#pragma once
#include "cuda/octets.cuh"

namespace ik::cuda {

// Of one warpgroup, in shared memory.
template <int kN>
struct OctetSums {
  float warp[4][kN];
  float mean[kN];
};

template <int kN>
class OctetStatistics {
 public:
  // barrier: a named barrier of this warpgroup's own.
  IK_DEVICE OctetStatistics(OctetSums<kN>& sums, int barrier) : sums_(sums), barrier_(barrier) {}

  // The stored values are acc + shift rounded to T. Writes mean and deviations of the tile's `rows` (at least one) to
  // partial[0][k] and partial[1][k], K apart.
  template <typename T, int kSlabs>
  IK_DEVICE void reduce(const float (&acc)[kSlabs][kN / 2], const OctetPlace& place, int row, int column,
                        const OctetEpilogue& args, float* partial) {
    const int tile_rows = kSlabs * kSlabRows;
    const int count = args.rows - row < tile_rows ? args.rows - row : tile_rows;
    add_rows<T, kSlabs, false>(acc, place, column, args);
    write_totals(1.0f / static_cast<float>(count), column, args.K, partial, sums_.mean);
    add_rows<T, kSlabs, true>(acc, place, column, args);
    write_totals(1.0f, column, args.K, partial + args.K, nullptr);
  }

 private:
  static constexpr int kThreads = 128;

  // The sum over this warp's rows of the values, or of their squared distances from the mean.
  template <typename T, int kSlabs, bool kSquares>
  IK_DEVICE void add_rows(const float (&acc)[kSlabs][kN / 2], const OctetPlace& place, int column,
                          const OctetEpilogue& args) {
    constexpr uint32_t kAllLanes = 0xffffffffu;
    const int thread = threadIdx.x % kThreads;
    const int column_in_tile = place.column0 - column;
#pragma unroll
    for (int group = 0; group < kN / kOctetGroup; ++group) {
      const int in_tile = column_in_tile + group * kOctetGroup;
      float shift[kOctet] = {};
      if (args.shift && column + in_tile < args.K) load_octet(args.shift + column + in_tile, shift);
      float sums[kOctet] = {};
#pragma unroll
      for (int half_row = 0; half_row < 2 * kSlabs; ++half_row) {
        const int row = half_row / 2 * kSlabRows + half_row % 2 * kOctet;
        if (place.row0 + row >= args.rows) continue;
        float values[kOctet];
        take_octet<kSlabs, kN>(acc, half_row / 2, group, half_row % 2, values);
#pragma unroll
        for (int i = 0; i < kOctet; ++i) {
          const float value = rounded<T>(values[i] + shift[i]);
          const float distance = kSquares ? value - sums_.mean[in_tile + i] : value;
          sums[i] += kSquares ? distance * distance : distance;
        }
      }
#pragma unroll
      for (int i = 0; i < kOctet; ++i) {
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2) {
          sums[i] += __shfl_xor_sync(kAllLanes, sums[i], distance);
        }
        if (thread % 32 < 4) sums_.warp[thread / 32][in_tile + i] = sums[i];
      }
    }
  }

  // The warps' sums times a factor, to global memory and, where given, to shared memory.
  IK_DEVICE void write_totals(float factor, int column, int K, float* partial, float* shared) {
    bar_sync(barrier_, kThreads);
    for (int i = threadIdx.x % kThreads; i < kN; i += kThreads) {
      const float total = ((sums_.warp[0][i] + sums_.warp[1][i]) + (sums_.warp[2][i] + sums_.warp[3][i])) * factor;
      if (shared) shared[i] = total;
      if (column + i < K) partial[column + i] = total;
    }
    bar_sync(barrier_, kThreads);
  }

  OctetSums<kN>& sums_;
  int barrier_;
};

}  // namespace ik::cuda
