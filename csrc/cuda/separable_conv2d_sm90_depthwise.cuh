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

// One column of inputs: opens the output column that begins at it, continues the one before, closes the one before
// that.
template <typename T, typename Tile, int kTurn>
IK_DEVICE void depthwise_column(const Args& args, const Channels& channels, bool continues, bool closes, uint32_t halo,
                                uint32_t a, uint32_t (&input)[kStripRows + kWindow - 1],
                                float2 (&sums)[kWindow][kStripRows]) {
  constexpr int kOpened = kTurn;
  constexpr int kContinued = (kTurn + 2) % kWindow;
  constexpr int kClosed = (kTurn + 1) % kWindow;
#pragma unroll
  for (int i = 0; i < kStripRows + kWindow - 1; ++i) {
    const float2 value = Pair<T>::unpack(Pair<T>::max(input[i], args.input_low));
    // The next column, needed some sixty instructions later; behind the last one lies what nobody uses.
    input[i] = lds32(halo + (i * Tile::kPitch + kTurn + 1) * kPixelBytes);
#pragma unroll
    for (int r = 0; r < kWindow; ++r) {
      const int o = i - r;
      if (o < 0 || o >= kStripRows) continue;
      const float2* taps = channels.taps + r * kWindow;
      sums[kOpened][o] = multiply_add(taps[0], value, r == 0 ? channels.bias : sums[kOpened][o]);
      if (continues) sums[kContinued][o] = multiply_add(taps[1], value, sums[kContinued][o]);
      if (!closes) continue;
      sums[kClosed][o] = multiply_add(taps[2], value, sums[kClosed][o]);
      if (r < kWindow - 1) continue;
      const uint32_t packed = Pair<T>::pack(sums[kClosed][o].x, sums[kClosed][o].y);
      sts32(a + (o * Tile::kColumns + kTurn - (kWindow - 1)) * 16, Pair<T>::max(packed, args.mid_low));
    }
  }
}

// halo: the strip's first input pixel, this lane's channels; a: the strip's first row, this lane's channels.
template <typename T, typename Tile>
IK_DEVICE void depthwise_strip(const Args& args, const Channels& channels, uint32_t halo, uint32_t a) {
  uint32_t input[kStripRows + kWindow - 1];
  float2 sums[kWindow][kStripRows];
#pragma unroll
  for (int i = 0; i < kStripRows + kWindow - 1; ++i) input[i] = lds32(halo + i * Tile::kPitch * kPixelBytes);
#pragma unroll 1
  for (int step = 0; step < Tile::kSteps; ++step) {  // gate: depthwise warps=2 trips=7
    const bool first = step == 0;
    depthwise_column<T, Tile, 0>(args, channels, !first, !first, halo, a, input, sums);
    depthwise_column<T, Tile, 1>(args, channels, true, !first, halo, a, input, sums);
    depthwise_column<T, Tile, 2>(args, channels, true, true, halo, a, input, sums);
    halo += kWindow * kPixelBytes;
    a += kWindow * 16;
  }
}

template <typename T, typename Tile>
class Producer {
 public:
  IK_DEVICE Producer(const TensorMap* x_map, const TensorMap* taps_map, typename Tile::Shared& shared, const Args& args)
      : x_map_(x_map), taps_map_(taps_map), args_(args), work_(Work::of(args)) {
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32 % 4, 0);
    lane_ = threadIdx.x % 32;
    strip_ = warp % kStrips;
    team_ = warp / kStrips;
    input_ = smem_u32(shared.input[team_]);
    input_full_ = smem_u32(&shared.input_full[team_]);
    a_ = smem_u32(shared.a);
    a_full_ = smem_u32(shared.a_full);
    a_empty_ = smem_u32(shared.a_empty);
  }

  IK_DEVICE void run() {
    const bool leads = strip_ == 0 && lane_ == 0;
    const uint32_t halo = input_ + strip_ * (kStripRows * Tile::kPitch * kPixelBytes) + lane_ * 4;
    const uint32_t a = a_ + lane_ / 4 * Tile::kPlaneBytes + strip_ * (Tile::kRowsOfStrip * 16) + lane_ % 4 * 4;
    const int stride = kTeams * args_.cluster;
    int own = team_;  // this block's chunks, counted
    int item = work_.first;
    int chunk = chunk_of(own);
    reduce(item, chunk);
    if (leads && chunk_of(own) < work_.chunks) load_input(item, chunk);
    for (; chunk_of(own) < work_.chunks; own += kTeams) {
      const int stage = chunk_of(own) % kStagesA;
      Channels channels;
      load_channels(chunk, own / kTeams % 2, channels);
      wait_for_stage(own, stage);
      depthwise_strip<T, Tile>(args_, channels, halo, a + stage * Tile::kBytesA);
      fence_proxy_async();
      wait_for_team();  // the chunk is complete, the halo is free
      chunk += stride;
      reduce(item, chunk);
      if (leads) {
        if (chunk_of(own + kTeams) < work_.chunks) load_input(item, chunk);
        publish(chunk_of(own) % kStagesA);
      }
      __syncwarp();
    }
  }

 private:
  // The place of this block's chunks among the cluster's.
  IK_DEVICE int chunk_of(int own) const { return own * args_.cluster + work_.rank; }

  IK_DEVICE void reduce(int& item, int& chunk) const {
    while (chunk >= args_.chunks) {
      chunk -= args_.chunks;
      item += args_.clusters;
    }
  }

  IK_DEVICE void load_input(int item, int chunk) const {
    const Place place = Place::of<Tile::kColumns, Tile::kN>(args_, item, work_.rank);
    mbar_expect_tx(input_full_, Tile::kInputBytes);
    tma_load_4d(x_map_, input_, input_full_, chunk * kChunk, place.column - args_.pad_w, place.row - args_.pad_h,
                place.image);
    tma_load_2d(taps_map_, input_ + Tile::kHaloBytes, input_full_, chunk * kChunk, 0);
  }

  IK_DEVICE void load_channels(int chunk, int parity, Channels& channels) const {
    const int c = chunk * kChunk + lane_ * 2;
    channels.bias = make_float2(0.0f, 0.0f);
    if (args_.depthwise_bias && c < args_.C) channels.bias = ldg64_ordered(args_.depthwise_bias + c);
    mbar_wait(input_full_, parity);
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      channels.taps[tap] = Pair<T>::unpack(lds32(input_ + Tile::kHaloBytes + tap * kPixelBytes + lane_ * 4));
    }
  }

  // Until every block of the cluster has consumed what this stage held four chunks ago. This block makes chunks of one
  // stage every kStagesA / gcd(kStagesA, cluster) of its own chunks: those are the rounds of its barrier, and it is the
  // same team that waits for all of them.
  IK_DEVICE void wait_for_stage(int own, int stage) const {
    if (chunk_of(own) < kStagesA) return;
    const int shift = args_.cluster == 2 ? 1 : 2;
    const int first = own & ((1 << shift) - 1);
    const int unwaited = chunk_of(first) < kStagesA;
    mbar_wait_cluster(a_empty_ + stage * 8, ((own >> shift) - unwaited) & 1);
  }

  IK_DEVICE void wait_for_team() const {
    if (team_ == 0) {
      bar_sync_n<1, kTeamThreads>();
    } else {
      bar_sync_n<2, kTeamThreads>();
    }
  }

  // By one thread: the chunk goes to the other blocks, and their consumers wait for its bytes, ours for this arrival.
  IK_DEVICE void publish(int stage) const {
    const uint32_t chunk = a_ + stage * Tile::kBytesA;
    const uint32_t full = a_full_ + stage * 8;
    for (int distance = 1; distance < args_.cluster; ++distance) {
      const int sum = work_.rank + distance;
      const uint32_t peer = static_cast<uint32_t>(sum < args_.cluster ? sum : sum - args_.cluster);
      bulk_copy_cluster(mapa(chunk, peer), chunk, Tile::kBytesA, mapa(full, peer));
    }
    mbar_arrive(full);
  }

  const TensorMap* x_map_;
  const TensorMap* taps_map_;
  const Args& args_;
  Work work_;
  int lane_, strip_, team_;
  uint32_t input_, input_full_;
  uint32_t a_, a_full_, a_empty_;
};

}  // namespace ik::cuda::separable_sm90
