// The consumers of the Hopper separable kernel: wgmma over the chunks, then scale, shift, residual, activation, store.
// Warpgroup w has slab w, 64 pixels by kN output channels; of a third slab each has all pixels of half the channels.
#pragma once
#include "cuda/separable_conv2d_sm90_tile.cuh"

namespace ik::cuda::separable_sm90 {

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

IK_DEVICE float4 ldg_vector(const float* from, bool given, float missing) {
  if (!given) return make_float4(missing, missing, missing, missing);
  const uint4 bits = ldg128_ordered(from);
  return make_float4(__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
                     __uint_as_float(bits.w));
}

// The place of a pair of channels among the accumulators: channels 2 pair and 2 pair + 1 of a thread's octet.
IK_DEVICE constexpr int pair_register(int group, int half, int pair) { return 16 * group + 4 * pair + 2 * half; }

// acc = scale * acc + shift for all octets from `column` on, in place: registers are short.
template <int kCount>
IK_DEVICE void scale_slab(float (&acc)[kCount], int column, const Args& args) {
#pragma unroll
  for (int group = 0; group < kCount / 16; ++group) {
    const int channel = column + group * kOctetGroup;
    if (channel >= args.K) break;
#pragma unroll
    for (int pair = 0; pair < kOctet / 2; pair += 2) {
      const float4 scale = ldg_vector(args.scale + channel + 2 * pair, args.scale != nullptr, 1.0f);
      const float4 shift = ldg_vector(args.shift + channel + 2 * pair, args.shift != nullptr, 0.0f);
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
IK_DEVICE void add_residual(float (&acc)[kCount], int group, int half, const T* from) {
  const uint4 vector = ldg128_ordered(from);
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

// 64 rows of the tile from row0 on by the channels from column0 on, four of them for each accumulator.
template <typename T, typename Tile, int kCount>
IK_DEVICE void store_slab(float (&acc)[kCount], const Args& args, int item, int row0, int column0) {
  const int thread = recomputed(threadIdx.x % kWarpgroupThreads);
  const int rank = static_cast<int>(cluster_ctarank());
  const int column =
      Place::of<Tile::kColumns, Tile::kN>(args, recomputed(item), rank).k + column0 + thread % 4 * kOctet;
  scale_slab(acc, column, args);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Place place = Place::of<Tile::kColumns, Tile::kN>(args, recomputed(item), rank);
    const OutputPixel pixel = output_pixel<Tile>(args, place, row0 + thread / 32 * 16 + thread % 32 / 4 + 8 * half);
    if (!pixel.inside) continue;
    T* const y = static_cast<T*>(args.y) + pixel.y + column;
    const T* const residual = static_cast<const T*>(args.residual) + pixel.residual + column;
#pragma unroll
    for (int group = 0; group < kCount / 16; ++group) {
      if (column + group * kOctetGroup >= args.K) break;
      if (args.residual) add_residual<T>(acc, group, half, residual + group * kOctetGroup);
      write_octet<T>(acc, group, half, args, y + group * kOctetGroup);
    }
  }
}

template <typename T, typename Tile>
class Consumer {
 public:
  IK_DEVICE Consumer(const TensorMap* weight_map, typename Tile::Shared& shared, const Args& args, int warpgroup)
      : weight_map_(weight_map), args_(args), work_(Work::of(args)), b_ring_(shared.b_ring), warpgroup_(warpgroup) {
    a_ = smem_u32(shared.a);
    b_ = smem_u32(shared.b);
    a_full_ = smem_u32(shared.a_full);
    a_empty_ = smem_u32(shared.a_empty);
    fill_item_ = work_.first;
  }

  IK_DEVICE void run() {
    RingPosition<Tile::kStagesB> fresh;
    for (; fresh.stage + 1 < Tile::kStagesB; fresh.advance()) fill(fresh);
    fill(fresh);
    for (int q = 0; q < kStagesA && q < work_.chunks; ++q) expect_chunk(q);
    int q = 0;
    RingPosition<Tile::kStagesB> position;
    for (int item = work_.first; item < args_.items; item += args_.clusters) {
      float own[Tile::kN / 2];
      float half_slab[Tile::kSharedN / 2];
      multiply(own, half_slab, q, position);
      if constexpr (Tile::kHasSharedSlab) {
        store_slab<T, Tile>(half_slab, args_, item, kConsumers * kSlabRows, warpgroup_ * Tile::kSharedN);
      }
      store_slab<T, Tile>(own, args_, item, warpgroup_ * kSlabRows, 0);
    }
  }

 private:
  // The products of one item, from chunk q on. One group of wgmma is in flight while the next one is issued.
  IK_DEVICE void multiply(float (&own)[Tile::kN / 2], float (&half_slab)[Tile::kSharedN / 2], int& q,
                          RingPosition<Tile::kStagesB>& position) {
    RingPosition<Tile::kStagesB> previous;
#pragma unroll 1
    for (int half = 0; half < args_.halves; ++half) {  // gate: product warps=8 trips=2
      const int stage = q % kStagesA;
      if (half % 2 == 0) mbar_wait(a_full_ + stage * 8, q / kStagesA % 2);
      b_ring_.wait_full(position);
      issue(own, half_slab, half, stage, position.stage);
      if (half > 0) {
        wgmma_wait<1>();
        if (half % 2 == 0) release_a(q - 1);
        release_b(previous);
      }
      previous = position;
      position.advance();
      q += half % 2;
    }
    wgmma_wait<0>();
    q += args_.halves % 2;
    release_a(q - 1);
    release_b(previous);
  }

  IK_DEVICE void issue(float (&own)[Tile::kN / 2], float (&half_slab)[Tile::kSharedN / 2], int half, int stage_a,
                       int stage_b) const {
    constexpr int kUnit = 16;  // bytes
    constexpr int kDepth = 16;
    constexpr int kPlanes = kDepth / 8;
    const uint32_t a = a_ + stage_a * Tile::kBytesA + half % 2 * (kHalfChunk / 8 * Tile::kPlaneBytes);
    const uint32_t b = b_ + stage_b * Tile::kBytesB;
    const uint64_t own_a = make_desc_none(a + warpgroup_ * (kSlabRows * kUnit), Tile::kPlaneBytes, 8 * kUnit);
    const uint64_t shared_a = make_desc_none(a + kConsumers * kSlabRows * kUnit, Tile::kPlaneBytes, 8 * kUnit);
    const uint64_t own_b = make_desc<Swizzle::k64>(b, kUnit, 8 * kWeightRowBytes);
    const uint64_t shared_b = own_b + warpgroup_ * (Tile::kSharedN * kWeightRowBytes / kUnit);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kHalfChunk / kDepth; ++step) {
      const int a_offset = step * kPlanes * (Tile::kPlaneBytes / kUnit);
      const int b_offset = step * kPlanes;
      const int accumulate = half > 0 || step > 0;
      Wgmma<T, Tile::kN>::run(own, own_a + a_offset, own_b + b_offset, accumulate);
      if constexpr (Tile::kHasSharedSlab) {
        Wgmma<T, Tile::kSharedN>::run(half_slab, shared_a + a_offset, shared_b + b_offset, accumulate);
      }
    }
    wgmma_commit();
  }

  IK_DEVICE bool leads() const { return threadIdx.x % 32 == 0; }
  IK_DEVICE bool loads() const { return threadIdx.x == 0; }  // of both warpgroups, one thread

  // Chunk q is consumed: the block that makes the stage's next chunk may write.
  IK_DEVICE void release_a(int q) const {
    const int next = q + kStagesA;
    if (next < work_.chunks) {
      expect_chunk(next);
      const uint32_t empty = a_empty_ + q % kStagesA * 8;
      if (leads()) mbar_arrive_cluster(mapa(empty, static_cast<uint32_t>(next % args_.cluster)));
    }
    __syncwarp();  // one path for all lanes from here on
  }

  // Chunks that another block makes arrive as bytes.
  IK_DEVICE void expect_chunk(int q) const {
    if (loads() && q % args_.cluster != work_.rank) mbar_expect_tx(a_full_ + q % kStagesA * 8, Tile::kBytesA);
  }

  IK_DEVICE void release_b(RingPosition<Tile::kStagesB> position) {
    if (leads()) b_ring_.release(position.stage);
    position.parity ^= 1;
    fill(position);
    __syncwarp();
  }

  // Loads the next weights. Counted by every thread, so that the counters stay uniform.
  IK_DEVICE void fill(const RingPosition<Tile::kStagesB>& position) {
    if (fill_item_ >= args_.items) return;
    if (loads()) {
      b_ring_.wait_empty(position);
      const Place place = Place::of<Tile::kColumns, Tile::kN>(args_, fill_item_, work_.rank);
      const uint32_t full = b_ring_.full(position.stage);
      mbar_expect_tx(full, Tile::kBytesB);
      load_octet_rows<Tile::kN>(weight_map_, b_ + position.stage * Tile::kBytesB, full, kWeightRowBytes,
                                fill_half_ * kHalfChunk, place.k, 0);
    }
    if (++fill_half_ < args_.halves) return;
    fill_half_ = 0;
    fill_item_ += args_.clusters;
  }

  const TensorMap* weight_map_;
  const Args& args_;
  Work work_;
  Ring<Tile::kStagesB> b_ring_;
  int warpgroup_;
  uint32_t a_, b_, a_full_, a_empty_;
  int fill_item_, fill_half_ = 0;
};

}  // namespace ik::cuda::separable_sm90
