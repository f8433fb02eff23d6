// Both convolutions of a pair with the intermediate in cache. Three regimes, by what fits:
//   whole images, one per thread;   one image shared by all threads;   bands of rows with their halo, one per thread.
#include "asymmetric_pair.h"

#include <algorithm>

#include "common/counters.h"
#include "common/parallel.h"
#include "cpu/packed_weight.h"
#include "cpu/run_conv.h"
#include "cpu/scratch.h"
#include "cpu/tiling.h"

namespace ik::cpu {
namespace {

constexpr int64_t kIntermediateBytes = 1 << 20;  // of one thread: a share of L2

int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      break;
  }
  return 2;
}

template <typename Pointer>
NhwcView<Pointer> shifted(const NhwcView<Pointer>& view, int64_t elements, int64_t element_bytes) {
  NhwcView<Pointer> result = view;
  // Through the byte type of the same constness.
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
  result.data = static_cast<Byte*>(view.data) + elements * element_bytes;
  return result;
}

struct Pair {
  const PairForward& args;
  const KernelTable& table;
  Geometry first, second;
  const void* first_weight;
  const void* second_weight;
  int64_t element;

  int64_t intermediate_row() const { return first.Q * first.K; }

  // Output rows [p_begin, p_end) of image n.
  void run(int64_t n, int64_t p_begin, int64_t p_end, void* buffer, int threads) const {
    const int64_t top = p_begin * second.stride_h - second.pad_h;
    const int64_t bottom = (p_end - 1) * second.stride_h - second.pad_h + (second.R - 1) * second.dilation_h + 1;
    const int64_t row_begin = std::clamp<int64_t>(top, 0, first.P);
    const int64_t row_end = std::clamp<int64_t>(bottom, row_begin, first.P);

    const int64_t row = intermediate_row();
    ConvTask one;
    one.geometry = band_of(first, row_begin, row_end);
    one.geometry.N = 1;
    one.x = shifted(args.x, n * args.x.stride_n, element);
    one.weight = first_weight;
    one.epilogue = {args.first_scale,
                    args.first_shift,
                    {},
                    args.first_activation,
                    {buffer, row * (row_end - row_begin), row, first.K}};
    run_conv(table, conv_kernels(table, first), one, threads);

    ConvTask two;
    two.geometry = band_of(second, p_begin, p_end);
    two.geometry.N = 1;
    two.geometry.H = row_end - row_begin;
    two.geometry.pad_h += row_begin;
    two.x = {buffer, row * (row_end - row_begin), row, first.K};
    two.weight = second_weight;
    two.epilogue = {args.second_scale,
                    args.second_shift,
                    {},
                    args.second_activation,
                    shifted(args.y, n * args.y.stride_n + p_begin * args.y.stride_h, element)};
    run_conv(table, conv_kernels(table, second), two, threads);
  }
};

}  // namespace

void asymmetric_pair_forward(const PairForward& args) {
  const KernelTable& table = kernel_table(args.dtype);
  const Pair pair{args,
                  table,
                  geometry_of(args.first),
                  geometry_of(args.second),
                  packed_payload(table, PackedKind::kConv2d, args.first, args.first_packed_weight),
                  packed_payload(table, PackedKind::kConv2d, args.second, args.second_packed_weight),
                  dtype_bytes(args.dtype)};
  const int64_t images = pair.second.N, P = pair.second.P;
  if (images <= 0 || P <= 0 || pair.second.Q <= 0 || pair.second.K <= 0) return;
  count_kernel(table.pair_counter);

  const int64_t threads = num_threads();
  const int64_t row_bytes = pair.intermediate_row() * pair.element, image_bytes = row_bytes * pair.first.P;
  const auto buffer = [](int64_t bytes) { return scratch(Scratch::kIntermediate, static_cast<size_t>(bytes)); };

  if (image_bytes <= kIntermediateBytes && images >= threads) {
    // The images that do not divide evenly are shared.
    const int64_t even = images / threads * threads;
    parallel_for(0, even, 1, [&](int64_t begin, int64_t end) {
      void* const own = buffer(image_bytes);
      for (int64_t n = begin; n < end; n++) pair.run(n, 0, P, own, 1);
    });
    void* const shared = buffer(image_bytes);
    for (int64_t n = even; n < images; n++) pair.run(n, 0, P, shared, static_cast<int>(threads));
    return;
  }
  if (image_bytes <= kIntermediateBytes * threads) {
    void* const shared = buffer(image_bytes);
    for (int64_t n = 0; n < images; n++) pair.run(n, 0, P, shared, static_cast<int>(threads));
    return;
  }
  const int64_t halo = (pair.second.R - 1) * pair.second.dilation_h;
  const int64_t fits = (kIntermediateBytes / row_bytes - halo) / pair.second.stride_h;
  const int64_t step = conv_kernels(table, pair.second).band_rows(pair.second);
  const int64_t most = std::clamp<int64_t>(fits, 1, (P + threads - 1) / threads);
  const int64_t band = std::max(step, most / step * step), bands = (P + band - 1) / band;
  parallel_for(0, images * bands, 1, [&](int64_t begin, int64_t end) {
    void* const own = buffer((band * pair.second.stride_h + halo) * row_bytes);
    for (int64_t i = begin; i < end; i++) {
      const int64_t p = i % bands * band;
      pair.run(i / bands, p, std::min(P, p + band), own, 1);
    }
  });
}

}  // namespace ik::cpu
