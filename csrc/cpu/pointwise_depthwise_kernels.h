// Depthwise rows with their epilogue, written once for all instruction sets.
#pragma once
#include "cpu/activation.h"
#include "cpu/pointwise_depthwise_table.h"

namespace ik::cpu::IK_ISA {

template <typename T>
struct DepthwiseRows {
  using A = Accum<T>;
  using V = Vec<A>;
  static constexpr int64_t kLanes = V::kLanes;

  // [channel vector][R * S][kLanes]
  static size_t weight_bytes(const Geometry& g) {
    return static_cast<size_t>((g.C + kLanes - 1) / kLanes * kLanes * g.R * g.S) * sizeof(A);
  }
  static void pack(const Geometry& g, const WeightView& w, void* packed) {
    A* out = static_cast<A*>(packed);
    const T* from = static_cast<const T*>(w.data);
    for (int64_t c = 0; c < g.C; c += kLanes)
      for (int64_t r = 0; r < g.R; r++)
        for (int64_t s = 0; s < g.S; s++)
          for (int64_t i = c; i < c + kLanes; i++)
            *out++ = i < g.C ? to_accum(from[i * w.stride_k + r * w.stride_r + s * w.stride_s]) : A(0);
  }

  // One vector of channels of one output row.
  struct Strip {
    const DepthwiseTask& task;
    int64_t c;
    int lanes;
    const A* weight;
    V scale, shift;
    T* y;  // the row's first pixel, channel c

    V read(const T* from) const { return lanes == kLanes ? load(from) : load(from, lanes); }
    void write(int64_t q, V sum) const {
      const V value = activate(task.activation, fmadd(sum, scale, shift));
      T* to = y + q * task.y.stride_w;
      if (lanes == kLanes)
        store(to, value);
      else
        store(to, value, lanes);
    }
    const T* line(int64_t h) const { return static_cast<const T*>(task.x.data) + h * task.x.stride_h + c; }
  };

  static void any_window(const Strip& strip, int64_t p) {
    const Geometry& g = strip.task.geometry;
    for (int64_t q = 0; q < g.Q; q++) {
      V sum = broadcast(A(0));
      for (int64_t r = 0; r < g.R; r++) {
        const int64_t h = p * g.stride_h - g.pad_h + r * g.dilation_h;
        if (h < 0 || h >= g.H) continue;
        for (int64_t s = 0; s < g.S; s++) {
          const int64_t w = q * g.stride_w - g.pad_w + s * g.dilation_w;
          if (w < 0 || w >= g.W) continue;
          const V x = strip.read(strip.line(h) + w * strip.task.x.stride_w);
          sum = fmadd(x, load(strip.weight + (r * g.S + s) * kLanes), sum);
        }
      }
      strip.write(q, sum);
    }
  }

  // 3 x 3, stride 1, dilation 1: adds each column of three pixels to the three outputs that it touches. Taps outside
  // of the image are left out, so every output has one order of summation.
  static void window_3x3(const Strip& strip, int64_t p) {
    const Geometry& g = strip.task.geometry;
    V tap[9];
    for (int i = 0; i < 9; i++) tap[i] = load(strip.weight + i * kLanes);
    const int64_t top = p - g.pad_h;
    const int64_t r_begin = top < 0 ? -top : 0, r_end = g.H - top < 3 ? g.H - top : 3;
    const V zero = broadcast(A(0));
    V first = zero, second = zero, third = zero;  // outputs whose last, middle and first column is being read
    for (int64_t w = -g.pad_w; w < g.Q + 2 - g.pad_w; w++) {
      if (w >= 0 && w < g.W) {
        for (int64_t r = r_begin; r < r_end; r++) {
          const V x = strip.read(strip.line(top + r) + w * strip.task.x.stride_w);
          first = fmadd(x, tap[3 * r + 2], first);
          second = fmadd(x, tap[3 * r + 1], second);
          third = fmadd(x, tap[3 * r], third);
        }
      }
      if (const int64_t q = w + g.pad_w - 2; q >= 0) strip.write(q, first);
      first = second;
      second = third;
      third = zero;
    }
  }

  static void rows(const DepthwiseTask& task, int64_t p_begin, int64_t p_end) {
    const Geometry& g = task.geometry;
    const bool sliding =
        g.R == 3 && g.S == 3 && g.stride_h == 1 && g.stride_w == 1 && g.dilation_h == 1 && g.dilation_w == 1;
    const A* scale = static_cast<const A*>(task.scale);
    const A* shift = static_cast<const A*>(task.shift);
    for (int64_t p = p_begin; p < p_end; p++) {
      for (int64_t c = 0; c < g.C; c += kLanes) {
        const int lanes = static_cast<int>(g.C - c < kLanes ? g.C - c : kLanes);
        const Strip strip{task,
                          c,
                          lanes,
                          static_cast<const A*>(task.weight) + c * g.R * g.S,
                          scale ? load(scale + c, lanes) : broadcast(A(1)),
                          shift ? load(shift + c, lanes) : broadcast(A(0)),
                          static_cast<T*>(task.y.data) + p * task.y.stride_h + c};
        if (sliding)
          window_3x3(strip, p);
        else
          any_window(strip, p);
      }
    }
  }

  static constexpr DepthwiseTable table(const char* counter) { return {counter, weight_bytes, pack, rows}; }
};

#define IK_DEPTHWISE_TABLE(type, variant) DepthwiseRows<type>::table("pointwise_depthwise_conv2d.forward.cpu_" variant)

}  // namespace ik::cpu::IK_ISA
