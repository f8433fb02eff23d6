// How the threads of a block share pixels and channels: `lanes` threads side by side take kCount channels each, and the
// block has kChannelThreads / lanes such rows, one pixel each.
#pragma once
#include <algorithm>

#include "cuda/launch.h"

namespace ik::cuda {

constexpr int kChannelThreads = 256;
constexpr int kMostLanes = 32;
constexpr int kBlocksPerMultiprocessor = 2;  // leaves a thread 128 registers

struct ChannelLanes {
  int lanes;   // a power of two
  int groups;  // of lanes * kCount channels

  ChannelLanes(int64_t K, int count, int most_lanes = kMostLanes) {
    const int64_t packets = (K + count - 1) / count;
    lanes = 1;
    while (lanes < most_lanes && lanes < packets) lanes *= 2;
    groups = static_cast<int>((packets + lanes - 1) / lanes);
  }
  int rows() const { return kChannelThreads / lanes; }
  dim3 block() const { return dim3(lanes, rows()); }
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Pixels cut into tiles, one for a block of each channel group. The cut depends on the shape alone, not on the device,
// and so do the bits of what is summed by tile.
struct TiledPixels {
  static constexpr int64_t kBlocks = 2048;  // about as many of them as there is work for
  int64_t tile_pixels;
  int64_t tiles;

  // Every thread takes a multiple of `step` pixels.
  TiledPixels(int64_t pixels, const ChannelLanes& threads, int64_t step, int64_t blocks = kBlocks) {
    const int64_t unit = threads.rows() * step;
    const int64_t wanted = std::max<int64_t>(1, blocks / threads.groups);
    tile_pixels = std::max<int64_t>(1, divide_up(divide_up(pixels, wanted), unit)) * unit;
    tiles = divide_up(pixels, tile_pixels);
  }
};

// Blocks walk the groups of a tile of pixels first, so that neighbours share the pixels' memory pages.
inline dim3 tile_grid(int64_t tiles, int groups) { return dim3(static_cast<unsigned>(tiles * groups)); }

// Where a thread of a (lanes, rows) block works.
template <int kCount>
struct Place {
  int k;        // first channel
  int first;    // first channel of the block
  int tile;     // of pixels
  bool inside;  // k < K

  IK_DEVICE Place(int K, int groups) {
    const int group = static_cast<int>(blockIdx.x) % groups;
    tile = static_cast<int>(blockIdx.x) / groups;
    first = group * static_cast<int>(blockDim.x) * kCount;
    k = first + static_cast<int>(threadIdx.x) * kCount;
    inside = k < K;
  }
};

template <int kCount>
IK_DEVICE void load_vector(const float* vector, int k, float otherwise, float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = vector == nullptr ? otherwise : vector[k + i];
}

}  // namespace ik::cuda
