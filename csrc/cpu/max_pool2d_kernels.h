// Max pooling of a range of rows and its gradient, written once for all instruction sets.
#pragma once
#include <cmath>
#include <type_traits>

#include "cpu/max_pool2d_table.h"
#include "cpu/vec.h"

namespace ik::cpu::IK_ISA {

template <typename T>
struct MaxPoolKernels {
  using A = Accum<T>;
  using V = Vec<A>;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kVectors = 4;  // of channels at a time

  template <typename E, typename Pointer>
  static auto at(const NhwcView<Pointer>& view, int64_t n, int64_t h, int64_t w) {
    return static_cast<E*>(view.data) + n * view.stride_n + h * view.stride_h + w * view.stride_w;
  }

  // What part of an axis a window, or the windows over a pixel, cover: [begin, end).
  struct Range {
    int64_t begin, end;
  };
  static Range taps_inside(int64_t start, int64_t taps, int64_t size) {
    return {start < 0 ? -start : 0, size - start < taps ? size - start : taps};
  }
  // `position` counts from the first padding pixel.
  static Range windows_over(int64_t position, int64_t taps, int64_t stride, int64_t windows) {
    const int64_t last = position / stride;
    return {position < taps ? 0 : (position - taps) / stride + 1, last < windows ? last + 1 : windows};
  }

  // Calls body(vectors, c, lanes) for all channels; only the last vector may have fewer lanes than kLanes.
  template <typename Body>
  static void for_channels(int64_t C, Body body) {
    int64_t c = 0;
    for (; c + kVectors * kLanes <= C; c += kVectors * kLanes) body(std::integral_constant<int, kVectors>(), c, kLanes);
    for (; c + kLanes <= C; c += kLanes) body(std::integral_constant<int, 1>(), c, kLanes);
    if (c < C) body(std::integral_constant<int, 1>(), c, static_cast<int>(C - c));
  }
  static void store_lanes(T* to, V value, int lanes) { lanes < kLanes ? store(to, value, lanes) : store(to, value); }

  static void forward(const MaxPoolForward& args, int64_t row_begin, int64_t row_end) {
    const PoolShape& g = args.shape;
    const int64_t P = g.P(), Q = g.Q();
    for (int64_t row = row_begin; row < row_end; ++row) {
      const int64_t n = row / P, p = row % P, h = p * g.stride_h - g.pad_h;
      const Range rows = taps_inside(h, g.R, g.H);
      for (int64_t q = 0; q < Q; ++q) {
        const int64_t w = q * g.stride_w - g.pad_w;
        const Range columns = taps_inside(w, g.S, g.W);
        const T* window = at<const T>(args.x, n, h + rows.begin, w + columns.begin);
        T* y = at<T>(args.y, n, p, q);
        uint8_t* taps = at<uint8_t>(args.taps, n, p, q);
        for_channels(g.C, [&](auto vectors, int64_t c, int lanes) {
          V largest[vectors], winner[vectors];
          for (int v = 0; v < vectors; ++v) {
            largest[v] = broadcast(static_cast<A>(-HUGE_VAL));
            winner[v] = broadcast(static_cast<A>(rows.begin * g.S + columns.begin));
          }
          for (int64_t r = rows.begin; r < rows.end; ++r) {
            const T* from = window + (r - rows.begin) * args.x.stride_h + c;
            for (int64_t s = columns.begin; s < columns.end; ++s, from += args.x.stride_w) {
              const V tap = broadcast(static_cast<A>(r * g.S + s));
              for (int v = 0; v < vectors; ++v) {
                const V value = load_some(from + v * kLanes, lanes);
                winner[v] = where_greater_or_nan(value, largest[v], tap, winner[v]);
                largest[v] = where_greater_or_nan(value, largest[v], value, largest[v]);
              }
            }
          }
          for (int v = 0; v < vectors; ++v) {
            store_lanes(y + c + v * kLanes, largest[v], lanes);
            store_bytes(taps + c + v * kLanes, winner[v], lanes);
          }
        });
      }
    }
  }

  // The windows over a pixel are added in their order, whatever the threads.
  static void backward(const MaxPoolBackward& args, int64_t row_begin, int64_t row_end) {
    const PoolShape& g = args.shape;
    const int64_t P = g.P(), Q = g.Q();
    for (int64_t row = row_begin; row < row_end; ++row) {
      const int64_t n = row / g.H, h = row % g.H;
      const Range rows = windows_over(h + g.pad_h, g.R, g.stride_h, P);
      for (int64_t w = 0; w < g.W; ++w) {
        const Range columns = windows_over(w + g.pad_w, g.S, g.stride_w, Q);
        T* grad_x = at<T>(args.grad_x, n, h, w);
        for_channels(g.C, [&](auto vectors, int64_t c, int lanes) {
          V sum[vectors];
          for (int v = 0; v < vectors; ++v) sum[v] = broadcast(A(0));
          for (int64_t p = rows.begin; p < rows.end; ++p) {
            const int64_t r = h + g.pad_h - p * g.stride_h;
            for (int64_t q = columns.begin; q < columns.end; ++q) {
              const int tap = static_cast<int>(r * g.S + w + g.pad_w - q * g.stride_w);
              const T* grad_y = at<const T>(args.grad_y, n, p, q) + c;
              const uint8_t* taps = at<const uint8_t>(args.taps, n, p, q) + c;
              for (int v = 0; v < vectors; ++v) {
                const V gradient = load_some(grad_y + v * kLanes, lanes);
                sum[v] = add_where_byte(sum[v], gradient, taps + v * kLanes, tap, lanes);
              }
            }
          }
          for (int v = 0; v < vectors; ++v) store_lanes(grad_x + c + v * kLanes, sum[v], lanes);
        });
      }
    }
  }

  static constexpr MaxPoolTable table(const char* forward_counter, const char* backward_counter) {
    return {forward_counter, backward_counter, forward, backward};
  }
};

#define IK_MAX_POOL_TABLE(type, variant) \
  MaxPoolKernels<type>::table("max_pool2d.forward.cpu_" variant, "max_pool2d.backward.cpu_" variant)

}  // namespace ik::cpu::IK_ISA
