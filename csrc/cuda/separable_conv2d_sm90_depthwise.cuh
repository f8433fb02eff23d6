// The producers of the Hopper separable kernel: depthwise 3 x 3 in float, from a halo that TMA brings to the operand A
// of wgmma. A lane has two channels, a warp 64 channels of a strip of rows. It slides along the rows: every input word
// is read once, three columns of outputs are open at a time, and as the loop takes three columns a turn, the names of
// the registers and all offsets are constants.
#pragma once
#include "cuda/separable_conv2d_sm90_tile.cuh"

namespace ik::cuda::separable_sm90 {

IK_DEVICE float2 multiply_add(float2 a, float2 b, float2 c) {
  return make_float2(fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y));
}

// What two channels need while a chunk is worked on.
struct Channels {
  float2 taps[kTaps];
  float2 bias;
};

constexpr int kInputRows = kStripRows + kWindow - 1;
constexpr int kRowsAhead = 1;  // an input is loaded so much before it is needed: a register each

// Three columns of outputs are open: sums[column % 3].
struct OpenColumns {
  uint32_t input[kInputRows];
  float2 sums[kWindow][kStripRows];
};

// What a strip is worked on with beside the taps: variants, because a bound or a bias costs registers.
template <bool kInputRelu_, bool kExtras_>
struct Variant {
  static constexpr bool kInputRelu = kInputRelu_;
  static constexpr bool kExtras = kExtras_;  // depthwise bias and an activation behind it
};

// One column of inputs opens the output column that begins at it, continues the one before, closes the one before that.
template <typename T, typename Tile, typename Variant, int kTurn>
IK_DEVICE void slide(const Channels& channels, bool mid_relu, uint32_t halo, uint32_t a, OpenColumns& columns) {
  float2(&opened)[kStripRows] = columns.sums[kTurn];
  float2(&continued)[kStripRows] = columns.sums[(kTurn + 2) % kWindow];
  float2(&closed)[kStripRows] = columns.sums[(kTurn + 1) % kWindow];
#pragma unroll
  for (int i = 0; i < kInputRows; ++i) {
    // Behind the last column lies what nobody uses.
    const int ahead = (i + kRowsAhead) % kInputRows;
    const int column = kTurn + (i + kRowsAhead) / kInputRows;
    columns.input[ahead] = lds32(halo + (ahead * Tile::kPitch + column) * kPixelBytes);
    const uint32_t bits = columns.input[i];
    const float2 value = Pair<T>::unpack(Variant::kInputRelu ? Pair<T>::max(bits, 0u) : bits);
#pragma unroll
    for (int r = 0; r < kWindow; ++r) {
      const int o = i - r;
      if (o < 0 || o >= kStripRows) continue;
      const float2* const taps = channels.taps + r * kWindow;
      const float2 start = Variant::kExtras ? channels.bias : make_float2(0.0f, 0.0f);
      opened[o] = multiply_add(taps[0], value, r == 0 ? start : opened[o]);
      continued[o] = multiply_add(taps[1], value, continued[o]);
      closed[o] = multiply_add(taps[2], value, closed[o]);
      if (r < kWindow - 1) continue;
      uint32_t packed = Pair<T>::pack(closed[o].x, closed[o].y);
      if (Variant::kExtras && mid_relu) packed = Pair<T>::max(packed, 0u);
      sts32(a + (o * Tile::kColumns + kTurn - (kWindow - 1)) * kRowBytes, packed);
    }
  }
}

// halo: the strip's first input pixel, this lane's channels; a: the row of its first output pixel, this lane's
// channels. The first step closes two columns in front of the strip: into slack rows, or where the next row's pixels
// follow.
template <typename T, typename Tile, typename Variant>
IK_DEVICE void depthwise_strip(const Channels& channels, bool mid_relu, uint32_t halo, uint32_t a) {
  OpenColumns columns = {};
#pragma unroll
  for (int i = 0; i < kRowsAhead; ++i) columns.input[i] = lds32(halo + i * Tile::kPitch * kPixelBytes);
#pragma unroll 1
  for (uint32_t step = uniform(0); step < Tile::kSteps; ++step) {  // gate: depthwise warps=2 trips=7/3
    slide<T, Tile, Variant, 0>(channels, mid_relu, halo, a, columns);
    slide<T, Tile, Variant, 1>(channels, mid_relu, halo, a, columns);
    slide<T, Tile, Variant, 2>(channels, mid_relu, halo, a, columns);
    halo += kWindow * kPixelBytes;
    a += kWindow * kRowBytes;
  }
}

template <typename T, typename Tile>
IK_DEVICE void depthwise_strip(const Args& args, const Channels& channels, uint32_t halo, uint32_t a) {
  const bool plain = !args.depthwise_bias && !args.mid_relu;
  if (plain && args.input_relu) {
    depthwise_strip<T, Tile, Variant<true, false>>(channels, false, halo, a);
  } else if (plain) {
    depthwise_strip<T, Tile, Variant<false, false>>(channels, false, halo, a);
  } else if (args.input_relu) {
    depthwise_strip<T, Tile, Variant<true, true>>(channels, args.mid_relu, halo, a);
  } else {
    depthwise_strip<T, Tile, Variant<false, true>>(channels, args.mid_relu, halo, a);
  }
}

template <typename T, typename Tile>
class Producer {
 public:
  IK_DEVICE Producer(const TensorMap* x_map, const TensorMap* taps_map, typename Tile::Shared& shared, const Args& args)
      : x_map_(x_map), taps_map_(taps_map), args_(args), chunks_(Work::of(args).items * args.chunks) {
    const uint32_t warp = uniform(threadIdx.x / 32 % 4);
    strip_ = warp % kStrips;
    team_ = warp / kStrips;
    input_ = smem_u32(shared.input[team_]);
    input_full_ = smem_u32(&shared.input_full[team_]);
    a_ = smem_u32(shared.a);
    a_full_ = smem_u32(shared.a_full);
    a_empty_ = smem_u32(shared.a_empty);
  }

  IK_DEVICE void run() const {
    if (leads()) load_input(team_);
    for (uint32_t own = team_; chunk_of(own) < chunks_; own += kTeams) {  // counts this block's chunks
      const uint32_t lane = recomputed(threadIdx.x) % 32;                 // a register over the loop is one too many
      const uint32_t halo = input_ + strip_ * (kStripRows * Tile::kPitch * kPixelBytes) + lane * 4;
      const uint32_t a = a_ + chunk_of(own) % kStagesA * Tile::kBytesA + lane / 4 * Tile::kPlaneBytes + lane % 4 * 4 +
                         (Tile::kSlackRows + strip_ * Tile::kRowsOfStrip) * kRowBytes;
      wait_for_stage(own);
      mbar_wait(input_full_, own / kTeams % 2);
      Channels channels;
      load_channels(own, channels);
      depthwise_strip<T, Tile>(args_, channels, halo, a);
      fence_proxy_async();
      wait_for_team();  // the chunk is complete, the halo is free
      if (leads()) {
        load_input(own + kTeams);
        publish(chunk_of(own) % kStagesA);
      }
      __syncwarp();
    }
  }

 private:
  IK_DEVICE bool leads() const { return strip_ == 0 && threadIdx.x % 32 == 0; }

  // The place of this block's chunks among the cluster's, and in the item.
  IK_DEVICE uint32_t chunk_of(uint32_t own) const { return own * args_.cluster + cluster_ctarank(); }
  IK_DEVICE int first_channel(uint32_t own) const {
    const uint32_t chunk = chunk_of(own);
    return static_cast<int>(chunk - args_.by_chunks.quotient(chunk) * args_.chunks) * kChunk;
  }

  IK_DEVICE void load_input(uint32_t own) const {
    const uint32_t chunk = chunk_of(own);
    if (chunk >= chunks_) return;
    const int c = first_channel(own);
    const Place place = Place::of<Tile>(args_, Work::of(args_).item(args_, args_.by_chunks.quotient(chunk)));
    mbar_expect_tx(input_full_, Tile::kInputBytes);
    tma_load_4d(x_map_, input_, input_full_, c, place.column - args_.pad_w, place.row - args_.pad_h, place.image);
    tma_load_2d(taps_map_, input_ + Tile::kHaloBytes, input_full_, c, 0);
  }

  IK_DEVICE void load_channels(uint32_t own, Channels& channels) const {
    const uint32_t lane = threadIdx.x % 32;
    channels.bias = make_float2(0.0f, 0.0f);
    if (args_.depthwise_bias) {
      const int c = first_channel(own) + static_cast<int>(lane) * 2;
      if (c < args_.C) channels.bias = ldg64_ordered(args_.depthwise_bias + c);
    }
    const uint32_t taps = input_ + Tile::kHaloBytes + lane * 4;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) channels.taps[tap] = Pair<T>::unpack(lds32(taps + tap * kPixelBytes));
  }

  // Until every block of the cluster has consumed what this stage held four chunks ago. This block makes chunks of one
  // stage every kStagesA / gcd(kStagesA, cluster) of its own chunks: those are the rounds of its barrier, and it is the
  // same team that waits for all of them.
  IK_DEVICE void wait_for_stage(uint32_t own) const {
    const uint32_t chunk = chunk_of(own);
    if (chunk < kStagesA) return;
    const uint32_t shift = args_.cluster == 2 ? 1 : 2;
    const uint32_t first = own & ((1u << shift) - 1);
    const uint32_t unwaited = chunk_of(first) < kStagesA ? 1 : 0;
    mbar_wait(barrier_at(a_empty_, chunk % kStagesA), ((own >> shift) - unwaited) & 1);
  }

  IK_DEVICE void wait_for_team() const {
    if (team_ == 0) {
      bar_sync_n<1, kTeamThreads>();
    } else {
      bar_sync_n<2, kTeamThreads>();
    }
  }

  // By one thread: the chunk goes to the other blocks, and their consumers wait for its bytes, ours for this arrival.
  IK_DEVICE void publish(uint32_t stage) const {
    const uint32_t chunk = a_ + stage * Tile::kBytesA;
    const uint32_t full = barrier_at(a_full_, stage);
    for (uint32_t distance = 1; distance < args_.cluster; ++distance) {
      const uint32_t sum = cluster_ctarank() + distance;
      const uint32_t peer = sum < args_.cluster ? sum : sum - args_.cluster;
      bulk_copy_cluster(mapa(chunk, peer), chunk, Tile::kBytesA, mapa(full, peer));
    }
    mbar_arrive(full);
  }

  const TensorMap* x_map_;
  const TensorMap* taps_map_;
  const Args& args_;
  uint32_t chunks_;  // of the cluster
  uint32_t strip_, team_;
  uint32_t input_, input_full_;
  uint32_t a_, a_full_, a_empty_;
};

}  // namespace ik::cuda::separable_sm90
