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

  // acc becomes the values as they are stored: acc + shift rounded to T. Writes mean and deviations of the rows of the
  // warpgroup's tile, of which there is at least one, to partial[0][k] and partial[1][k], K apart.
  template <typename T, int kSlabs>
  IK_DEVICE void reduce(float (&acc)[kSlabs][kN / 2], const OctetPlace& place, const OctetEpilogue& args,
                        float* partial) {
    constexpr int kRows = kSlabs * kSlabRows;
    const int rows = args.rows - place.tile_row;
    const int columns = args.K - place.tile_column;
    scale_octets<kSlabs, kN>(acc, place, args);
    add_rows<T, kSlabs, false>(acc, place, args);
    write_totals(1.0f / static_cast<float>(rows < kRows ? rows : kRows), columns, partial + place.tile_column,
                 sums_.mean);
    add_rows<T, kSlabs, true>(acc, place, args);
    write_totals(1.0f, columns, partial + args.K + place.tile_column, nullptr);
  }

 private:
  static constexpr int kThreads = 128;

  // The sum over this warp's rows of the values, which this rounds, or of their squared distances from the mean.
  template <typename T, int kSlabs, bool kSquares>
  IK_DEVICE void add_rows(float (&acc)[kSlabs][kN / 2], const OctetPlace& place, const OctetEpilogue& args) {
    constexpr uint32_t kAllLanes = 0xffffffffu;
    const int thread = threadIdx.x % kThreads;
#pragma unroll
    for (int group = 0; group < kN / kOctetGroup; ++group) {
      if (place.tile_column + group * kOctetGroup >= args.K) break;
#pragma unroll
      for (int i = 0; i < kOctet; ++i) {
        const int column = place.column0 - place.tile_column + group * kOctetGroup + i;
        const float mean = kSquares ? sums_.mean[column] : 0.0f;
        float sum = 0.0f;
#pragma unroll
        for (int slab = 0; slab < kSlabs; ++slab) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float& value = acc[slab][octet_register(group, half, i)];
            if (!kSquares) value = rounded<T>(value);
            const float distance = value - mean;
            if (place.row0 + octet_row(slab, half) < args.rows) sum += kSquares ? distance * distance : distance;
          }
        }
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
        if (thread % 32 < 4) sums_.warp[thread / 32][column] = sum;
      }
    }
  }

  // The warps' sums times a factor, to global memory and, where given, to shared memory.
  IK_DEVICE void write_totals(float factor, int columns, float* partial, float* shared) {
    bar_sync(barrier_, kThreads);
    const int summed = (columns + kOctetGroup - 1) / kOctetGroup * kOctetGroup;
    for (int i = threadIdx.x % kThreads; i < kN && i < summed; i += kThreads) {
      const float total = ((sums_.warp[0][i] + sums_.warp[1][i]) + (sums_.warp[2][i] + sums_.warp[3][i])) * factor;
      if (shared) shared[i] = total;
      if (i < columns) partial[i] = total;
    }
    bar_sync(barrier_, kThreads);
  }

  OctetSums<kN>& sums_;
  int barrier_;
};

}  // namespace ik::cuda
