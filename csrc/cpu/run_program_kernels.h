// Pools and elementwise steps on channels-last activations, written once for all instruction sets.
#pragma once
#include <type_traits>

#include "cpu/activation.h"
#include "cpu/integers.h"
#include "cpu/reductions.h"
#include "cpu/run_program_table.h"

namespace ik::cpu::IK_ISA {

template <typename T>
struct ProgramKernels {
  using A = Accum<T>;
  using V = Vec<A>;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kAheadPixels = 4, kLine = kCacheLine / sizeof(T), kCacheBytes = 32 << 20;

  // What happens to `lanes` channels of one pixel on their way out.
  struct Finish {
    V scale, shift;
    bool scaled, shifted;
    Activation activation;

    Finish(const Epilogue& e, int64_t c, int64_t lanes) : activation(e.activation) {
      const A* scales = static_cast<const A*>(e.scale);
      const A* shifts = static_cast<const A*>(e.shift);
      const int n = static_cast<int>(lanes < kLanes ? lanes : kLanes);
      scaled = scales != nullptr;
      shifted = shifts != nullptr;
      scale = scaled ? load(scales + c, n) : broadcast(A(1));
      shift = shifted ? load(shifts + c, n) : broadcast(A(0));
    }
    // Adding a missing shift would turn -0 into 0.
    void operator()(V value, const T* residual, T* y, int64_t lanes) const {
      if (scaled) value = value * scale;
      if (shifted) value = value + shift;
      if (residual) value = value + load_some(residual, lanes);
      value = activate(activation, value);
      if (lanes >= kLanes)
        store(y, value);
      else
        store(y, value, static_cast<int>(lanes));
    }
  };

  static const T* at(const NhwcInput& view, int64_t n, int64_t h, int64_t w, int64_t c) {
    if (!view.data) return nullptr;
    return static_cast<const T*>(view.data) + n * view.stride_n + h * view.stride_h + w * view.stride_w + c;
  }
  static T* at(const NhwcOutput& view, int64_t n, int64_t h, int64_t w, int64_t c) {
    return static_cast<T*>(view.data) + n * view.stride_n + h * view.stride_h + w * view.stride_w + c;
  }

  template <typename Reduction>
  static void pool(const PoolTask& t, int64_t unit_begin, int64_t unit_end) {
    using Map = std::conditional_t<std::is_same_v<Reduction, SumOf<T>>, Average, Same>;
    const Geometry& g = t.geometry;
    const bool plain = is_plain(t.epilogue);
    // New are the lowest rows' pixels to the right; the hardware does not follow them from page to page.
    const bool fetches = g.N * g.H * g.W * g.C * static_cast<int64_t>(sizeof(T)) > kCacheBytes;
    const int64_t chunks = (g.C + kPoolChunk - 1) / kPoolChunk;
    for (int64_t unit = unit_begin; unit < unit_end; unit++) {
      const int64_t row = unit / chunks, n = row / g.P, p = row % g.P;
      const int64_t c_begin = unit % chunks * kPoolChunk,
                    c_end = g.C - c_begin < kPoolChunk ? g.C : c_begin + kPoolChunk;
      const int64_t h = p * g.stride_h - g.pad_h;
      // Taps inside the image: [r_begin, r_end).
      const int64_t r_begin = first_inside(h, g.dilation_h), r_end = taps_inside(h, g.dilation_h, g.H, g.R);
      for (int64_t q = 0; q < g.Q; q++) {
        const int64_t w = q * g.stride_w - g.pad_w;
        const int64_t s_begin = first_inside(w, g.dilation_w), s_end = taps_inside(w, g.dilation_w, g.W, g.S);
        const Map map(average_divisor(t, h, w, r_end - r_begin, s_end - s_begin));
        if (fetches) {
          const int64_t ahead = w + (g.S - 1) * g.dilation_w + kAheadPixels;
          for (int64_t r = larger(r_begin, g.R - g.stride_h); r < r_end; r++)
            for (int64_t s = 0; s < g.stride_w && ahead + s < g.W; s++)
              for (int64_t c = c_begin; c < c_end; c += kLine)
                __builtin_prefetch(at(t.x, n, h + r * g.dilation_h, ahead + s, c));
        }
        const Window window{at(t.x, n, h + r_begin * g.dilation_h, w + s_begin * g.dilation_w, 0), r_end - r_begin,
                            s_end - s_begin, g.dilation_h * t.x.stride_h, g.dilation_w * t.x.stride_w};
        const Out out{t.epilogue, at(t.epilogue.y, n, p, q, 0), at(t.epilogue.residual, n, p, q, 0)};
        if (window.R == 3 && window.S == 3)
          three_by_three<Reduction>(window, out, map, plain, c_begin, c_end);
        else
          any_window<Reduction>(window, out, map, c_begin, c_end);
      }
    }
  }

  // What of a window lies inside the image.
  struct Window {
    const T* x;
    int64_t R, S;
    int64_t stride_r, stride_s;
  };
  // One output pixel.
  struct Out {
    const Epilogue& epilogue;
    T* y;
    const T* residual;
  };

  template <typename Reduction, typename Map>
  static void three_by_three(const Window& window, const Out& out, const Map& map, bool plain, int64_t c_begin,
                             int64_t c_end) {
    constexpr int64_t kStep = Reduction::kVectors * kLanes;
    const T* taps[9];
    for (int64_t i = 0; i < 9; i++) taps[i] = window.x + i / 3 * window.stride_r + i % 3 * window.stride_s;
    int64_t c = c_begin;
    for (; c + kStep <= c_end; c += kStep) {
      Reduction found;
#pragma GCC unroll 9
      for (int i = 0; i < 9; i++) found.add(taps[i] + c);
      if (plain)
        found.store_whole(out.y + c, map);
      else
        finish(found, out, map, c, kStep);
    }
    if (c == c_end) return;
    Reduction found;
    for (int i = 0; i < 9; i++) found.add(taps[i] + c, c_end - c);
    finish(found, out, map, c, c_end - c);
  }
  template <typename Reduction, typename Map>
  static void any_window(const Window& window, const Out& out, const Map& map, int64_t c_begin, int64_t c_end) {
    for (int64_t c = c_begin; c < c_end; c += Reduction::kVectors * kLanes) {
      Reduction found;
      for (int64_t r = 0; r < window.R; r++) {
        const T* from = window.x + r * window.stride_r + c;
        for (int64_t s = 0; s < window.S; s++, from += window.stride_s) found.add(from, c_end - c);
      }
      finish(found, out, map, c, c_end - c);
    }
  }
  template <typename Reduction, typename Map>
  static void finish(const Reduction& found, const Out& out, const Map& map, int64_t c, int64_t channels) {
#pragma GCC unroll 2
    for (int v = 0; v < Reduction::kVectors && channels > 0; v++, c += kLanes, channels -= kLanes)
      Finish(out.epilogue, c, channels)(map(found.vector(v)), out.residual ? out.residual + c : nullptr, out.y + c,
                                        channels);
  }
  // Nothing but the reduction.
  static bool is_plain(const Epilogue& e) {
    return !e.scale && !e.shift && !e.residual.data && e.activation == Activation::kNone;
  }

  struct Average {
    V divisor;
    explicit Average(A pixels) : divisor(broadcast(pixels)) {}
    V operator()(V sum) const { return sum / divisor; }
  };
  // Of a maximum nothing.
  struct Same {
    explicit Same(A) {}
    V operator()(V value) const { return value; }
  };

  static int64_t first_inside(int64_t start, int64_t dilation) {
    return start >= 0 ? 0 : (-start + dilation - 1) / dilation;
  }
  static int64_t taps_inside(int64_t start, int64_t dilation, int64_t size, int64_t taps) {
    const int64_t fit = size <= start ? 0 : (size - start + dilation - 1) / dilation;
    return fit < taps ? fit : taps;
  }
  // As torch.nn.functional.avg_pool2d counts: padding counts, what a ceiled output reads beyond it does not.
  static A average_divisor(const PoolTask& t, int64_t h, int64_t w, int64_t rows, int64_t columns) {
    if (t.divisor) return static_cast<A>(t.divisor);
    const Geometry& g = t.geometry;
    if (!t.count_include_pad) return static_cast<A>(rows * columns);
    const int64_t below = g.H + g.pad_h - h, right = g.W + g.pad_w - w;
    return static_cast<A>((below < g.R ? below : g.R) * (right < g.S ? right : g.S));
  }

  static void elementwise(const ElementwiseTask& t, int64_t row_begin, int64_t row_end) {
    const Geometry& g = t.geometry;
    for (int64_t row = row_begin; row < row_end; row++) {
      const int64_t n = row / g.H, h = row % g.H;
      if (t.x_stride_c != 1)
        gathered_row(t, n, h);
      else
        adjacent_row(t, n, h);
    }
  }
  static void adjacent_row(const ElementwiseTask& t, int64_t n, int64_t h) {
    const Geometry& g = t.geometry;
    for (int64_t c = 0; c < g.C; c += kLanes) {
      const int64_t lanes = g.C - c;
      const Finish finish(t.epilogue, c, lanes);
      for (int64_t w = 0; w < g.W; w++)
        finish(load_some(at(t.x, n, h, w, c), lanes), at(t.epilogue.residual, n, h, w, c), at(t.epilogue.y, n, h, w, c),
               lanes);
    }
  }
  static void gathered_row(const ElementwiseTask& t, int64_t n, int64_t h) {
    const Epilogue& e = t.epilogue;
    if (is_plain(e)) {
      moved_row(t, n, h);
      return;
    }
    const Geometry& g = t.geometry;
    for (int64_t c = 0; c < g.C; c++) {
      const Finish finish(e, c, 1);
      const T* from = static_cast<const T*>(t.x.data) + n * t.x.stride_n + h * t.x.stride_h + c * t.x_stride_c;
      for (int64_t w = 0; w < g.W; w++)
        finish(broadcast(to_accum(from[w * t.x.stride_w])), at(e.residual, n, h, w, c), at(e.y, n, h, w, c), 1);
    }
  }
  static void moved_row(const ElementwiseTask& t, int64_t n, int64_t h) {
    const T* from = static_cast<const T*>(t.x.data) + n * t.x.stride_n + h * t.x.stride_h;
    T* to = at(t.epilogue.y, n, h, 0, 0);
    const int64_t W = t.geometry.W, C = t.geometry.C, stride_w = t.epilogue.y.stride_w;
    // The usual image: three planes into adjacent pixels, at constant distances.
    if (C == 3 && t.x.stride_w == 1 && stride_w == 3) {
      const T *first = from, *second = from + t.x_stride_c, *third = from + 2 * t.x_stride_c;
      for (int64_t w = 0; w < W; w++, to += 3) {
        to[0] = first[w];
        to[1] = second[w];
        to[2] = third[w];
      }
      return;
    }
    for (int64_t c = 0; c < C; c++)
      for (int64_t w = 0; w < W; w++) to[w * stride_w + c] = from[c * t.x_stride_c + w * t.x.stride_w];
  }

  static constexpr ProgramTable table(const char* max_pool2d, const char* avg_pool2d, const char* max_pool,
                                      const char* average_pool, const char* elementwise_name) {
    return {max_pool2d,       avg_pool2d,     max_pool,       average_pool,
            elementwise_name, pool<MaxOf<T>>, pool<SumOf<T>>, elementwise};
  }
};

#define IK_PROGRAM_TABLE(type, variant)                                                                     \
  ProgramKernels<type>::table("max_pool2d.inference.cpu_" variant, "avg_pool2d.forward.cpu_" variant,       \
                              "run_program.max_pool.cpu_" variant, "run_program.average_pool.cpu_" variant, \
                              "run_program.elementwise.cpu_" variant)

}  // namespace ik::cpu::IK_ISA
