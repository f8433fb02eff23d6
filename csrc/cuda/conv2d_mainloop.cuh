// The ring of stages between cp.async and the product.
#pragma once
#include "cuda/conv2d_tiles.cuh"
#include "cuda/primitives.cuh"
#include "cuda/tile_product.cuh"

namespace ik::cuda {

template <typename Tile, int kStagesValue>
struct ConvRing {
  static constexpr int kStages = kStagesValue;
  unsigned char left[kStages][Tile::kLeftBytes];
  unsigned char right[kStages][Tile::kRightBytes];
};

// All threads of the block call; `takes_part` says whether the columns of the warp are wanted.
template <typename Product, typename Tile, int kStages, typename Loader>
IK_DEVICE void accumulate(const ConvGeometry& g, Loader& loader, WeightLoader<Tile>& weights,
                          ConvRing<Tile, kStages>& ring, const StageProduct<Product, Tile>& product, bool takes_part,
                          Accumulators<Tile>& acc) {
  const uint32_t left = smem_u32(ring.left);
  const uint32_t right = smem_u32(ring.right);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < g.steps) {
      loader.fetch(g, left + stage * Tile::kLeftBytes);
      weights.fetch(right + stage * Tile::kRightBytes);
      loader.store(left + stage * Tile::kLeftBytes);
    }
    cp_async_commit();
  }
  int reading = 0;
  int filling = kStages - 1;
  // gate: product
  for (int step = 0; step < g.steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    const bool more = step + kStages - 1 < g.steps;
    if (more) {
      loader.fetch(g, left + filling * Tile::kLeftBytes);
      weights.fetch(right + filling * Tile::kRightBytes);
    }
    cp_async_commit();
    if (takes_part) product.add(acc, left + reading * Tile::kLeftBytes, right + reading * Tile::kRightBytes);
    if (more) loader.store(left + filling * Tile::kLeftBytes);
    filling = reading;
    reading = reading + 1 == kStages ? 0 : reading + 1;
  }
}

}  // namespace ik::cuda
