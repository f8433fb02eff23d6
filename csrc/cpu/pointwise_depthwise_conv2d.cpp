// The 1 x 1 into a buffer that stays in cache, then the depthwise window out of it. Three regimes, by what fits:
//   whole images, one per thread;   one image shared by all threads;   bands of rows with their halo, one per thread.
#include "pointwise_depthwise_conv2d.h"

#include <algorithm>

#include "common/counters.h"
#include "common/parallel.h"
#include "cpu/isa.h"
#include "cpu/packed_weight.h"
#include "cpu/pointwise_depthwise_table.h"
#include "cpu/run_conv.h"
#include "cpu/scratch.h"
#include "cpu/tiling.h"

namespace ik::cpu {
namespace {

constexpr int64_t kIntermediateBytes = 1 << 20;  // of one thread: a share of L2

const DepthwiseTable& depthwise_table(DType dtype) { return IK_TABLE_BY_ISA(depthwise_table, dtype); }

int64_t element_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

struct Stages {
  const PointwiseDepthwiseForward& args;
  const KernelTable& dense;
  const DepthwiseTable& depthwise;
  Geometry first, second;
  const void* first_weight;
  int64_t element;

  int64_t row() const { return first.Q * first.K; }  // elements of a row of the intermediate

  // Output rows [p_begin, p_end) of image n, with the intermediate rows that they read in `buffer`.
  void run(int64_t n, int64_t p_begin, int64_t p_end, void* buffer, int threads) const {
    const int64_t top = p_begin * second.stride_h - second.pad_h;
    const int64_t bottom = (p_end - 1) * second.stride_h - second.pad_h + (second.R - 1) * second.dilation_h + 1;
    const int64_t row_begin = std::clamp<int64_t>(top, 0, first.P);
    const int64_t row_end = std::clamp<int64_t>(bottom, row_begin, first.P);

    ConvTask one;
    one.geometry = band_of(first, row_begin, row_end);
    one.geometry.N = 1;
    one.x = args.x;
    one.x.data = static_cast<const char*>(args.x.data) + n * args.x.stride_n * element;
    one.weight = first_weight;
    const int64_t size = row() * (row_end - row_begin);
    one.epilogue = {nullptr, nullptr, {}, args.mid_activation, {buffer, size, row(), first.K}};
    run_conv(dense, conv_kernels(dense, first), one, threads);

    DepthwiseTask two;
    two.geometry = band_of(second, p_begin, p_end);
    two.geometry.N = 1;
    two.geometry.H = row_end - row_begin;
    two.geometry.pad_h += row_begin;
    two.x = {buffer, size, row(), first.K};
    two.weight = args.second_packed;
    two.scale = args.scale;
    two.shift = args.shift;
    two.activation = args.activation;
    two.y = args.y;
    two.y.data = static_cast<char*>(args.y.data) + (n * args.y.stride_n + p_begin * args.y.stride_h) * element;
    if (threads == 1) {
      depthwise.rows(two, 0, p_end - p_begin);
    } else {
      parallel_for(0, p_end - p_begin, 1, [&](int64_t begin, int64_t end) { depthwise.rows(two, begin, end); });
    }
  }
};

}  // namespace

size_t depthwise_window_bytes(const ConvShape& second, DType dtype) {
  return depthwise_table(dtype).weight_bytes(geometry_of(second));
}

void depthwise_window_pack(const ConvShape& second, DType dtype, const WeightView& weight, void* packed) {
  depthwise_table(dtype).pack(geometry_of(second), weight, packed);
}

void pointwise_depthwise_forward(const PointwiseDepthwiseForward& args) {
  const KernelTable& dense = kernel_table(args.dtype);
  const Stages stages{args,
                      dense,
                      depthwise_table(args.dtype),
                      geometry_of(args.first),
                      geometry_of(args.second),
                      packed_payload(dense, PackedKind::kConv2d, args.first, args.first_packed),
                      element_bytes(args.dtype)};
  const int64_t images = stages.second.N, P = stages.second.P, threads = num_threads();
  count_kernel(stages.depthwise.counter);

  const int64_t row_bytes = stages.row() * stages.element, image_bytes = row_bytes * stages.first.P;
  const auto buffer = [](int64_t bytes) { return scratch(Scratch::kIntermediate, static_cast<size_t>(bytes)); };
  if (image_bytes <= kIntermediateBytes && images >= threads) {
    // The images that do not divide evenly are shared.
    const int64_t even = images / threads * threads;
    parallel_for(0, even, 1, [&](int64_t begin, int64_t end) {
      void* const own = buffer(image_bytes);
      for (int64_t n = begin; n < end; n++) stages.run(n, 0, P, own, 1);
    });
    void* const shared = buffer(image_bytes);
    for (int64_t n = even; n < images; n++) stages.run(n, 0, P, shared, static_cast<int>(threads));
    return;
  }
  if (image_bytes <= kIntermediateBytes * threads) {
    void* const shared = buffer(image_bytes);
    for (int64_t n = 0; n < images; n++) stages.run(n, 0, P, shared, static_cast<int>(threads));
    return;
  }
  const int64_t halo = (stages.second.R - 1) * stages.second.dilation_h;
  const int64_t fits = (kIntermediateBytes / row_bytes - halo) / stages.second.stride_h;
  const int64_t band = std::clamp<int64_t>(fits, 1, (P + threads - 1) / threads), bands = (P + band - 1) / band;
  parallel_for(0, images * bands, 1, [&](int64_t begin, int64_t end) {
    void* const own = buffer((band * stages.second.stride_h + halo) * row_bytes);
    for (int64_t i = begin; i < end; i++) {
      const int64_t p = i % bands * band;
      stages.run(i / bands, p, std::min(P, p + band), own, 1);
    }
  });
}

}  // namespace ik::cpu
