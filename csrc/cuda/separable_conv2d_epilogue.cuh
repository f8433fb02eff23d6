// The epilogue of 16-bit tiles whose rows can be stored 16 bytes at a time: a warp puts one fragment (epilogue.cuh)
// into shared memory as it will be stored, then moves whole rows. Without shuffles, and in runs of full rows.
#pragma once
#include "cuda/epilogue.cuh"

namespace ik::cuda::separable {

// Sixteen rows of kColumnTiles vectors.
template <int kColumnTiles>
struct StagedFragment {
  static_assert(kColumnTiles == 4 || kColumnTiles == 8, "the swizzle is for rows of 64 and 128 bytes");
  static constexpr int kRowBytes = 16 * kColumnTiles;
  static constexpr int kBytes = kFragmentRows * kRowBytes;
  static constexpr int kRowsAtOnce = 32 / kColumnTiles;

  static IK_DEVICE uint32_t offset(int row, int vector) {
    return row * kRowBytes + ((vector ^ (row * kRowBytes / 128 % kColumnTiles)) << 4);
  }
};

inline bool can_stage(const Epilogue& args) { return args.wide_y && (args.residual == nullptr || args.wide_residual); }

// What follows from it is computed again for every fragment: kept, it would cost registers.
IK_DEVICE int own_lane() { return recomputed(static_cast<int>(threadIdx.x) % 32); }

// Residual rows into the staged fragment. pixel_of(row): where a row of the fragment lies.
template <typename T, int kColumnTiles, typename PixelOf>
IK_DEVICE void stage_residual(uint32_t staged, PixelOf pixel_of, int column0, const Epilogue& args) {
  using Staged = StagedFragment<kColumnTiles>;
  const int lane = own_lane();
  const int vector = lane % kColumnTiles;
  const int column = column0 + vector * kBlockColumns;
#pragma unroll
  for (int i = 0; i < kFragmentRows / Staged::kRowsAtOnce; ++i) {
    const int row = i * Staged::kRowsAtOnce + lane / kColumnTiles;
    const OutputPixel pixel = pixel_of(recomputed(row));
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (pixel.inside && column < args.K) {
      bits = ldg128_ordered(static_cast<const T*>(args.residual) + pixel.residual + column);
    }
    sts128(staged + Staged::offset(row, vector), bits);
  }
}

template <typename T, int kColumnTiles, typename PixelOf>
IK_DEVICE void store_staged_rows(uint32_t staged, PixelOf pixel_of, int column0, const Epilogue& args) {
  using Staged = StagedFragment<kColumnTiles>;
  const int lane = own_lane();
  const int vector = lane % kColumnTiles;
  const int column = column0 + vector * kBlockColumns;
#pragma unroll
  for (int i = 0; i < kFragmentRows / Staged::kRowsAtOnce; ++i) {
    const int row = i * Staged::kRowsAtOnce + lane / kColumnTiles;
    const OutputPixel pixel = pixel_of(recomputed(row));
    const uint4 bits = lds128(staged + Staged::offset(row, vector));
    if (pixel.inside && column < args.K) stg128(static_cast<T*>(args.y) + pixel.y + column, bits);
  }
}

// What this thread holds of the fragment. ReLU is a bound on the packed pairs.
template <typename T, bool kBounded, bool kResidual, int kColumnTiles, int kTileColumns>
IK_DEVICE void stage_values(const float (&acc)[4 * kColumnTiles], uint32_t staged,
                            const ScaleShiftTile<kTileColumns>& tile, int column_in_tile, Activation activation) {
  using Staged = StagedFragment<kColumnTiles>;
  // The larger of a number and minus infinity is the number.
  const float bound_value = activation == Activation::kRelu ? 0.0f : -INFINITY;
  const uint32_t bound = Pair<T>::pack(bound_value, bound_value);
  const int lane = own_lane();
  const int q = lane % 4;
#pragma unroll
  for (int j = 0; j < kColumnTiles; ++j) {
    const int column = column_in_tile + j * kBlockColumns + 2 * q;
    const float2 scale = *reinterpret_cast<const float2*>(&tile.scale[column]);
    const float2 shift = *reinterpret_cast<const float2*>(&tile.shift[column]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t place = staged + Staged::offset(half * 8 + lane / 4, j) + q * 4;
      float values[2] = {fmaf(acc[4 * j + 2 * half], scale.x, shift.x),
                         fmaf(acc[4 * j + 2 * half + 1], scale.y, shift.y)};
      if constexpr (kResidual) {
        const float2 residual = Pair<T>::unpack(lds32(place));
        values[0] += residual.x;
        values[1] += residual.y;
      }
      if constexpr (!kBounded) activate(activation, values);
      const uint32_t pair = Pair<T>::pack(values[0], values[1]);
      sts32(place, kBounded ? Pair<T>::max(pair, bound) : pair);
    }
  }
}

// staged: this warp's own StagedFragment::kBytes. All lanes of the warp take part.
template <typename T, int kColumnTiles, int kTileColumns, typename PixelOf>
IK_DEVICE void store_fragment_staged(const float (&acc)[4 * kColumnTiles], uint32_t staged, PixelOf pixel_of,
                                     int column0, const ScaleShiftTile<kTileColumns>& tile, int column_in_tile,
                                     const Epilogue& args) {
  const bool bounded = args.activation == Activation::kNone || args.activation == Activation::kRelu;
  if (args.residual == nullptr) {
    if (bounded) {
      stage_values<T, true, false, kColumnTiles>(acc, staged, tile, column_in_tile, args.activation);
    } else {
      stage_values<T, false, false, kColumnTiles>(acc, staged, tile, column_in_tile, args.activation);
    }
  } else {
    stage_residual<T, kColumnTiles>(staged, pixel_of, column0, args);
    __syncwarp();
    if (bounded) {
      stage_values<T, true, true, kColumnTiles>(acc, staged, tile, column_in_tile, args.activation);
    } else {
      stage_values<T, false, true, kColumnTiles>(acc, staged, tile, column_in_tile, args.activation);
    }
  }
  __syncwarp();
  store_staged_rows<T, kColumnTiles>(staged, pixel_of, column0, args);
  __syncwarp();
}

}  // namespace ik::cuda::separable
