// The consumers of the Hopper separable kernel: wgmma over the chunks, then scale, shift, residual, activation, store.
// Warpgroup w has slab w, 64 pixels by kN output channels; of a third slab each has all pixels of half the channels.
#pragma once
#include "cuda/separable_conv2d_sm90_tile.cuh"

namespace ik::cuda::separable_sm90 {

// From the first warpgroup's slab to the second one's.
struct SlabStep {
  int row, column;
};

// Where the accumulators of this thread go: computed where they are needed.
template <typename Tile>
struct Destination {
  Place place;
  int row;     // of the slab's first half
  int column;  // the first output channel

  IK_DEVICE Destination(const Args& args, uint32_t item, int row0, SlabStep step)
      : place(Place::of<Tile>(args, uniform(item))) {
    const uint32_t thread = recomputed(threadIdx.x);
    const int warpgroup = static_cast<int>(thread / kWarpgroupThreads);
    row = row0 + warpgroup * step.row + static_cast<int>(thread / 32 % 4 * 16 + thread % 32 / 4);
    column = place.k + warpgroup * step.column + static_cast<int>(thread % 4) * kOctet;
  }
};

// Where one pixel of the tile goes, in elements.
struct OutputPixel {
  bool inside;
  int64_t y, residual;
};

template <typename Tile>
IK_DEVICE OutputPixel output_pixel(const Args& args, const Place& place, int row) {
  const int strip = row / Tile::kRowsOfStrip;
  const int in_strip = row - strip * Tile::kRowsOfStrip;
  const int line = in_strip / Tile::kColumns;
  const int p = place.row + strip * kStripRows + line;
  const int q = place.column + in_strip - line * Tile::kColumns;
  const auto offset = [&](const Pixels& pixels) {
    return place.image * pixels.stride_n + (p * pixels.stride_h + q * pixels.stride_w);
  };
  return {line < kStripRows && p < args.P && q < args.Q, offset(args.y_pixels), offset(args.residual_pixels)};
}

// The place of a pair of channels among the accumulators: channels 2 pair and 2 pair + 1 of a thread's octet.
IK_DEVICE constexpr int pair_register(int group, int half, int pair) { return 16 * group + 4 * pair + 2 * half; }

IK_DEVICE float4 load_vector(const float* from, bool given, float missing) {
  if (!given) return make_float4(missing, missing, missing, missing);
  const uint4 bits = ldg128_ordered(from);
  return make_float4(__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
                     __uint_as_float(bits.w));
}

// acc = scale * acc + shift for all octets from `column` on, in place: registers are short.
template <int kCount>
IK_DEVICE void scale_slab(float (&acc)[kCount], int column, const Args& args) {
#pragma unroll
  for (int group = 0; group < kCount / 16; ++group) {
    const int channel = column + group * kOctetGroup;
    if (channel >= args.K) break;
#pragma unroll
    for (int pair = 0; pair < kOctet / 2; pair += 2) {
      const float4 scale = load_vector(args.scale + channel + 2 * pair, args.scale != nullptr, 1.0f);
      const float4 shift = load_vector(args.shift + channel + 2 * pair, args.shift != nullptr, 0.0f);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* const first = acc + pair_register(group, half, pair);
        float* const second = acc + pair_register(group, half, pair + 1);
        first[0] = fmaf(first[0], scale.x, shift.x);
        first[1] = fmaf(first[1], scale.y, shift.y);
        second[0] = fmaf(second[0], scale.z, shift.z);
        second[1] = fmaf(second[1], scale.w, shift.w);
      }
    }
  }
}

template <typename T, int kCount>
IK_DEVICE void add_octet(float (&acc)[kCount], int group, int half, const uint4& vector) {
  const uint32_t bits[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = Pair<T>::unpack(bits[i]);
    acc[pair_register(group, half, i)] += pair.x;
    acc[pair_register(group, half, i) + 1] += pair.y;
  }
}

template <typename T, int kCount>
IK_DEVICE void write_octet(const float (&acc)[kCount], int group, int half, const Args& args, T* to) {
  uint32_t bits[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* const pair = acc + pair_register(group, half, i);
    bits[i] = Pair<T>::min(Pair<T>::max(Pair<T>::pack(pair[0], pair[1]), args.low), args.high);
  }
  stg128(to, make_uint4(bits[0], bits[1], bits[2], bits[3]));
}

// 64 rows of the tile by four output channels for each accumulator. The first warpgroup's begin at row0, the second
// one's at `step` from there. The residual is loaded for kBatch groups at a time: as many as there are registers for.
template <typename T, typename Tile, int kBatch, int kCount>
IK_DEVICE void store_slab(float (&acc)[kCount], const Args& args, uint32_t item, int row0, SlabStep step) {
  constexpr int kGroups = kCount / 16;
  scale_slab(acc, Destination<Tile>(args, item, row0, step).column, args);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Destination<Tile> to(args, item, row0 + 8 * half, step);
    const OutputPixel pixel = output_pixel<Tile>(args, to.place, to.row);
    if (pixel.inside) {
      T* const y = static_cast<T*>(args.y) + pixel.y + to.column;
      const T* const residual = static_cast<const T*>(args.residual) + pixel.residual + to.column;
      const int groups_inside = (args.K - to.column + kOctetGroup - 1) / kOctetGroup;
#pragma unroll
      for (int batch = 0; batch < kGroups; batch += kBatch) {
        if (args.residual) {
          uint4 vectors[kBatch];
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
            vectors[i] = make_uint4(0, 0, 0, 0);
            if (batch + i < groups_inside) vectors[i] = ldg128_ordered(residual + (batch + i) * kOctetGroup);
          }
#pragma unroll
          for (int i = 0; i < kBatch; ++i) add_octet<T>(acc, batch + i, half, vectors[i]);
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (batch + i < groups_inside) write_octet<T>(acc, batch + i, half, args, y + (batch + i) * kOctetGroup);
        }
      }
    }
    __syncwarp();
  }
}

// Steps are halves of chunks, counted through all items of the cluster; step t has its weights in stage t % kStagesB.
template <typename T, typename Tile>
class Consumer {
 public:
  IK_DEVICE Consumer(const TensorMap* weight_map, typename Tile::Shared& shared, const Args& args)
      : weight_map_(weight_map), args_(args), work_(Work::of(args)) {
    a_ = smem_u32(shared.a);
    b_ = smem_u32(shared.b);
    a_full_ = smem_u32(shared.a_full);
    a_empty_ = smem_u32(shared.a_empty);
    b_full_ = smem_u32(shared.b_full);
    b_empty_ = smem_u32(shared.b_empty);
  }

  IK_DEVICE void run() const {
    for (uint32_t step = uniform(0); step < kStagesB; ++step) load_weights(step);
    for (uint32_t q = uniform(0); q < kStagesA; ++q) expect_chunk(q);
    for (uint32_t ordinal = uniform(0); ordinal < work_.items; ++ordinal) {
      float own[Tile::kN / 2];
      float half_slab[Tile::kSharedN / 2];
      multiply(own, half_slab, ordinal);
      const uint32_t item = work_.item(args_, ordinal);
      if constexpr (Tile::kHasSharedSlab) {
        constexpr int kBatch = 2;
        store_slab<T, Tile, kBatch>(half_slab, args_, item, kConsumers * kSlabRows, SlabStep{0, Tile::kSharedN});
      }
      constexpr int kBatch = Tile::kN / kOctetGroup;
      store_slab<T, Tile, kBatch>(own, args_, item, 0, SlabStep{kSlabRows, 0});
    }
  }

 private:
  // The products of one item. One group of wgmma is in flight while the next one is issued.
  IK_DEVICE void multiply(float (&own)[Tile::kN / 2], float (&half_slab)[Tile::kSharedN / 2], uint32_t ordinal) const {
    const uint32_t first_step = ordinal * args_.halves;
    const uint32_t first_chunk = ordinal * args_.chunks;
#pragma unroll 1
    for (uint32_t half = uniform(0); half < args_.halves; ++half) {  // gate: product warps=8 trips=2
      const uint32_t step = first_step + half;
      const uint32_t q = first_chunk + half / 2;
      if (half % 2 == 0) mbar_wait(barrier_at(a_full_, q % kStagesA), q / kStagesA % 2);
      mbar_wait(barrier_at(b_full_, step % kStagesB), step / kStagesB % 2);
      issue(own, half_slab, half, q % kStagesA, step % kStagesB);
      if (half > 0) {
        wgmma_wait<1>();
        if (half % 2 == 0) release_chunk(q - 1);
        release_weights(step - 1);
      }
      if (step >= kReleasedSteps) load_weights(step - kReleasedSteps + kStagesB);
    }
    wgmma_wait<0>();
    release_chunk(first_chunk + args_.chunks - 1);
    release_weights(first_step + args_.halves - 1);
  }

  IK_DEVICE void issue(float (&own)[Tile::kN / 2], float (&half_slab)[Tile::kSharedN / 2], uint32_t half,
                       uint32_t stage_a, uint32_t stage_b) const {
    constexpr int kUnit = 16;  // bytes
    constexpr int kDepth = 16;
    constexpr int kPlanes = kDepth / 8;
    const uint32_t warpgroup = uniform(threadIdx.x / kWarpgroupThreads);
    const uint32_t a =
        a_ + stage_a * Tile::kBytesA + half % 2 * (kHalfChunk / 8 * Tile::kPlaneBytes) + Tile::kSlackRows * kRowBytes;
    const uint32_t b = b_ + stage_b * Tile::kBytesB;
    const uint64_t own_a = make_desc_none(a + warpgroup * (kSlabRows * kUnit), Tile::kPlaneBytes, 8 * kUnit);
    const uint64_t shared_a = make_desc_none(a + kConsumers * kSlabRows * kUnit, Tile::kPlaneBytes, 8 * kUnit);
    const uint64_t own_b = make_desc<Swizzle::k64>(b, kUnit, 8 * kWeightRowBytes);
    const uint64_t shared_b =
        make_desc<Swizzle::k64>(b + warpgroup * (Tile::kSharedN * kWeightRowBytes), kUnit, 8 * kWeightRowBytes);
    wgmma_fence();
#pragma unroll
    for (int depth = 0; depth < kHalfChunk / kDepth; ++depth) {
      const int a_offset = depth * kPlanes * (Tile::kPlaneBytes / kUnit);
      const int b_offset = depth * kPlanes;
      const int accumulate = half > 0 || depth > 0;
      Wgmma<T, Tile::kN>::run(own, own_a + a_offset, own_b + b_offset, accumulate);
      if constexpr (Tile::kHasSharedSlab) {
        Wgmma<T, Tile::kSharedN>::run(half_slab, shared_a + a_offset, shared_b + b_offset, accumulate);
      }
    }
    wgmma_commit();
  }

  static IK_DEVICE bool leads() { return threadIdx.x % 32 == 0; }

  // Chunk q is consumed: the block that makes the stage's next chunk may write.
  IK_DEVICE void release_chunk(uint32_t q) const {
    const uint32_t next = q + kStagesA;
    if (next < work_.items * args_.chunks) {
      expect_chunk(next);
      const uint32_t empty = barrier_at(a_empty_, q % kStagesA);
      if (leads()) mbar_arrive_remote(mapa(empty, maker(next)));
    }
    __syncwarp();  // one path for all lanes from here on
  }

  // The block that makes chunk q.
  IK_DEVICE uint32_t maker(uint32_t q) const { return q - args_.by_cluster.quotient(q) * args_.cluster; }

  // Chunks that another block makes arrive as bytes: one thread says so.
  IK_DEVICE void expect_chunk(uint32_t q) const {
    if (threadIdx.x == 0 && maker(q) != cluster_ctarank() && q < work_.items * args_.chunks) {
      mbar_expect_tx(barrier_at(a_full_, q % kStagesA), Tile::kBytesA);
    }
  }

  IK_DEVICE void release_weights(uint32_t step) const {
    if (leads()) mbar_arrive(barrier_at(b_empty_, step % kStagesB));
  }

  // Each warp loads 32 channels, when the stage has been released two steps ago: by now nobody has to wait for that.
  IK_DEVICE void load_weights(uint32_t step) const {
    const uint32_t warp = uniform(threadIdx.x / 32);
    if (step < work_.items * args_.halves && warp < Tile::kN / kOctetGroup && leads()) {
      const uint32_t stage = step % kStagesB;
      const uint32_t full = barrier_at(b_full_, stage);
      const uint32_t ordinal = args_.by_halves.quotient(step);
      const int c = static_cast<int>(step - ordinal * args_.halves) * kHalfChunk;
      const int k = Place::of<Tile>(args_, work_.item(args_, ordinal)).k + static_cast<int>(warp) * kOctetGroup;
      mbar_wait(barrier_at(b_empty_, stage), step / kStagesB % 2 ^ 1);
      if (warp == 0) mbar_expect_tx(full, Tile::kBytesB);
      tma_load_5d(weight_map_, b_ + stage * Tile::kBytesB + warp * kGroupBytes, full, c, 0, k / kOctet, 0, 0);
    }
    __syncwarp();
  }

  static constexpr uint32_t kReleasedSteps = 2;
  static constexpr int kGroupBytes = kOctetGroup * kWeightRowBytes;

  const TensorMap* weight_map_;
  const Args& args_;
  Work work_;
  uint32_t a_, b_, a_full_, a_empty_, b_full_, b_empty_;
};

}  // namespace ik::cuda::separable_sm90
