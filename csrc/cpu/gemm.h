// The register-blocked product that every operator is built on, its operand formats and its epilogue.
//   A: rows a constant pitch apart, read in place or from a producer's tile; k runs through the same segments in all
//   B: [panel of kNR columns][k][kNR]                  packed once
// A and B consist of operands (operand.h), and k counts them.
//   C: stays in registers until scale, shift, residual and activation are applied
// The order of summation of an element of C depends on k alone: its bits do not depend on the tile it is in.
//
#pragma once
#include <type_traits>
#include <utility>

#include "cpu/activation.h"
#include "cpu/integers.h"
#include "cpu/kernel_table.h"
#include "cpu/operand.h"
#include "cpu/scratch.h"
#include "cpu/upcoming.h"

namespace ik::cpu::IK_ISA {

// Sums are chained over about so many k and then added up: a single chain over thousands would lose digits.
constexpr int64_t kChain = 384;

// Registers decide the block: kMR x kNV accumulators, kNV columns of B and one broadcast of A.
template <typename O>
struct Gemm {
  static constexpr int kBytes = Vec<O>::kLanes * static_cast<int>(sizeof(O));
  static constexpr int kMR = kBytes == 64 ? 14 : kBytes == 32 ? 6 : 4;
  static constexpr int kNV = 2;
  static constexpr int kNR = kNV * Vec<O>::kLanes;
};

// A producer's tile: [row panel][chain of k][kMR][pitch]. Long runs of a row let the hardware follow all rows of a
// panel; a pitch of no more than a chain keeps the rows' elements of one k close together for the producer.
template <typename O>
inline int64_t tile_pitch(int64_t k) {
  return smaller(kChain, round_up(k, Vec<O>::kLanes));
}
template <typename O>
inline int64_t panel_operands(int64_t k) {
  return ceil_div(k, kChain) * Gemm<O>::kMR * tile_pitch<O>(k);
}

// Consecutive k that lie next to each other in a row of A, `offset` operands from the row's start.
struct Segment {
  int64_t k, offset, length;
  bool ends_chain;
};

// k in equal chains of at most `longest`.
struct Chains {
  const Segment* segments;
  int count;

  Chains(int64_t k, int64_t longest) : count(static_cast<int>(ceil_div(k, longest))) {
    Segment* const out =
        static_cast<Segment*>(scratch(Scratch::kSegments, static_cast<size_t>(count) * sizeof(Segment)));
    for (int64_t i = 0; i < count; i++) {
      const int64_t from = k * i / count;
      out[i] = {from, from, k * (i + 1) / count - from, true};
    }
    segments = out;
  }
};

// At most kMR rows of A and where their results go: elements from the output's (residual's) column 0.
template <typename O>
struct RowPanel {
  const O* a;
  int rows;
  // The others are zero in all rows.
  int segment_begin, segment_end;
  int64_t y[Gemm<O>::kMR], residual[Gemm<O>::kMR];
};

template <typename A>
inline bool not_finite(Vec<A> x) {
  return any_nan(x * broadcast(A(0)));
}

// What is done with sums that are not a result yet.
template <typename A>
struct SumsUpdate {
  A* sums;        // [kMR][kNR]
  bool adds;      // to them, else they are written
  bool negative;  // subtracts
};

// One panel of B and what becomes of its columns.
template <typename T>
struct ColumnPanel {
  using A = Accum<T>;
  const Segment* segments;
  int64_t pitch;  // operands between rows of A
  const Operand<T>* b;
  const A* scale;  // of the panel's columns; null = 1
  const A* shift;  // null = 0
  const T* residual;
  T* y;
  A low, high;  // the activation as bounds
  A* sums;      // [kMR][kNR]: of the chains so far
  int updates;  // if any, nothing else is done with the sums
  SumsUpdate<A> update[2];
  int64_t ahead;  // bytes from b to what is fetched meanwhile, a line per k
};

template <typename T, int NV>
inline void store_columns(T* to, const Vec<Accum<T>> (&columns)[NV]) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, Bf16> && NV == 2) {
    const __m512bh both = _mm512_cvtne2ps_pbh(columns[1].v, columns[0].v);
    _mm512_storeu_si512(to, reinterpret_cast<const __m512i&>(both));
    return;
  }
#endif
#pragma GCC unroll 2
  for (int j = 0; j < NV; j++) store(to + j * Vec<Accum<T>>::kLanes, columns[j]);
}

template <typename T, int MR, int NV>
void micro_kernel(const ColumnPanel<T>& panel, const RowPanel<Operand<T>>& rows) {
  using A = Accum<T>;
  using O = Operand<T>;
  static_assert(Vec<A>::kLanes == Vec<O>::kLanes);
  constexpr int kLanes = Vec<A>::kLanes, kNR = Gemm<O>::kNR, kUnroll = 4, kAhead = 16;
  constexpr int kVectorBytes = kLanes * static_cast<int>(sizeof(T));
  constexpr int kLineVectors = kVectorBytes < kCacheLine ? static_cast<int>(kCacheLine) / kVectorBytes : 1;
  // Three rows share a base register: base, base + pitch, base + 2 * pitch are addressing modes of x86.
  constexpr int kBases = (MR + 2) / 3;
  const int64_t pitch = panel.pitch * static_cast<int64_t>(sizeof(O)), ahead = panel.ahead;
  const O* b = panel.b + panel.segments[rows.segment_begin].k * kNR;
  Vec<A> sum[MR][NV];
  A* const finished = panel.sums;
  const Segment *const begin = panel.segments + rows.segment_begin, *const end = panel.segments + rows.segment_end;
  const Segment* segment = begin;
  // Stores to lines that are still in memory would hold up the loads of the next rows.
  if (!panel.updates) {
    for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
      for (int j = 0; j < NV; j += kLineVectors) __builtin_prefetch(panel.y + rows.y[i] + j * kLanes, 1);
    }
    if (panel.residual) {
      for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < NV; j += kLineVectors) __builtin_prefetch(panel.residual + rows.residual[i] + j * kLanes);
      }
    }
  }
  for (;;) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
      for (int j = 0; j < NV; j++) sum[i][j] = broadcast(A(0));
    }
    const bool first = segment == begin;
    do {
      const char* base[kBases];
#pragma GCC unroll 5
      for (int i = 0; i < kBases; i++)
        base[i] = reinterpret_cast<const char*>(rows.a + segment->offset) + 3 * i * pitch;
      const auto step = [&](int s) __attribute__((always_inline)) {
        Vec<O> column[NV];
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) column[j] = load(b + s * kNR + j * kLanes);
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) __builtin_prefetch(b + (s + kAhead) * kNR + j * kLanes);
        __builtin_prefetch(reinterpret_cast<const char*>(b + s * kNR) + ahead, 0, 2);
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++) {
          const Vec<O> row = broadcast(reinterpret_cast<const O*>(base[i / 3] + i % 3 * pitch)[s]);
#pragma GCC unroll 2
          for (int j = 0; j < NV; j++) accumulate(sum[i][j], row, column[j]);
        }
        __asm__ volatile("" ::: "memory");  // loads of the next step hoisted above would need registers
      };
      const auto advance = [&](int steps) __attribute__((always_inline)) {
#pragma GCC unroll 5
        for (int i = 0; i < kBases; i++) {
          base[i] += steps * static_cast<int>(sizeof(O));
          __asm__("" : "+r"(base[i]));  // else the compiler would keep a pointer per row, in memory
        }
        b += steps * kNR;
      };
      int64_t k = segment->length;
#pragma GCC unroll 1
      for (; k >= kUnroll; k -= kUnroll) {
#pragma GCC unroll 4
        for (int s = 0; s < kUnroll; s++) step(s);
        advance(kUnroll);
      }
#pragma GCC unroll 1
      for (; k > 0; k--) {
        step(0);
        advance(1);
      }
    } while (!segment++->ends_chain && segment != end);
    if (!first) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) sum[i][j] = load(finished + i * kNR + j * kLanes) + sum[i][j];
      }
    }
    if (segment == end) break;
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
      for (int j = 0; j < NV; j++) store(finished + i * kNR + j * kLanes, sum[i][j]);
    }
  }
  if (panel.updates) {
    for (int u = 0; u < panel.updates; u++) {
      const SumsUpdate<A> update = panel.update[u];
      const Vec<A> sign = broadcast(update.negative ? A(-1) : A(1));
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) {
          A* const to = update.sums + i * kNR + j * kLanes;
          store(to, update.adds ? fmadd(sum[i][j], sign, load(to)) : sum[i][j]);
        }
      }
    }
    return;
  }
#pragma GCC unroll 2
  for (int j = 0; j < NV; j++) {
    if (panel.scale || panel.shift) {
      const Vec<A> scale = panel.scale ? load(panel.scale + j * kLanes) : broadcast(A(1));
      const Vec<A> shift = panel.shift ? load(panel.shift + j * kLanes) : broadcast(A(0));
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) sum[i][j] = fmadd(sum[i][j], scale, shift);
    }
    if (panel.residual) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) sum[i][j] = sum[i][j] + load(panel.residual + rows.residual[i] + j * kLanes);
    }
    if (panel.low > -HUGE_VAL) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) sum[i][j] = vmax(broadcast(panel.low), sum[i][j]);
    }
    if (panel.high < HUGE_VAL) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) sum[i][j] = vmin(broadcast(panel.high), sum[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) store_columns(panel.y + rows.y[i], sum[i]);
}

template <typename T>
using MicroKernel = void (*)(const ColumnPanel<T>&, const RowPanel<Operand<T>>&);

template <typename T, int NV, int... kRows>
inline MicroKernel<T> pick_micro_kernel(int rows, std::integer_sequence<int, kRows...>) {
  static constexpr MicroKernel<T> kTable[] = {micro_kernel<T, kRows + 1, NV>...};
  return kTable[rows - 1];
}

// What the micro-kernel does on registers, from its sums: for activations that are no bounds and for ragged columns.
template <typename T>
inline void finish(const ColumnPanel<T>& panel, const RowPanel<Operand<T>>& rows, Activation activation,
                   int64_t columns) {
  using A = Accum<T>;
  constexpr int kLanes = Vec<A>::kLanes;
  for (int64_t j = 0; j < columns; j += kLanes) {
    const int n = static_cast<int>(smaller(kLanes, columns - j));
    Vec<A> scale = broadcast(A(1)), shift = broadcast(A(0));
    if (panel.scale) scale = load(panel.scale + j, n);
    if (panel.shift) shift = load(panel.shift + j, n);
    for (int i = 0; i < rows.rows; i++) {
      Vec<A> value = load(panel.sums + i * Gemm<Operand<T>>::kNR + j);
      if (panel.scale || panel.shift) value = fmadd(value, scale, shift);
      if (panel.residual) {
        const T* residual = panel.residual + rows.residual[i] + j;
        value = value + (n == kLanes ? load(residual) : load(residual, n));
      }
      value = activate(activation, value);
      T* y = panel.y + rows.y[i] + j;
      if (n == kLanes)
        store(y, value);
      else
        store(y, value, n);
    }
  }
}

// A tile's rows, all of one pitch.
template <typename O>
struct Rows {
  const RowPanel<O>* panels;
  int64_t count;
  int64_t pitch;
  const Segment* segments;
  Upcoming upcoming;
};

// The columns of panels [panel_begin, panel_end). Panels of B outer, rows inner: a panel of B is read once from memory,
// A stays in L2.
template <typename T>
void multiply(const Rows<Operand<T>>& rows, const void* packed_b, int64_t k, int64_t K, const Epilogue& epilogue,
              int64_t panel_begin, int64_t panel_end) {
  using A = Accum<T>;
  using O = Operand<T>;
  constexpr int64_t kMR = Gemm<O>::kMR, kNR = Gemm<O>::kNR, kLanes = Vec<O>::kLanes;
  constexpr std::make_integer_sequence<int, Gemm<O>::kMR> kAllRows{};
  constexpr int64_t kLines = kNR * static_cast<int64_t>(sizeof(O)) / kCacheLine;
  alignas(64) A sums[kMR * kNR];
  const auto at = [](auto* data, int64_t offset) { return data ? data + offset : nullptr; };
  const Activation activation = epilogue.activation;
  const bool bounds = activation <= Activation::kRelu6;
  ColumnPanel<T> panel{};
  panel.segments = rows.segments;
  panel.pitch = rows.pitch;
  panel.sums = sums;
  panel.low = activation == Activation::kNone ? -A(HUGE_VAL) : A(0);
  panel.high = activation == Activation::kRelu6 ? A(6) : A(HUGE_VAL);
  const int64_t calls = rows.count * (panel_end - panel_begin);
  int64_t call = 0;
  for (int64_t q = panel_begin; q < panel_end; q++) {
    const int64_t column = q * kNR, columns = smaller(kNR, K - column);
    const bool in_registers = bounds && columns % kLanes == 0;
    panel.b = static_cast<const O*>(packed_b) + column * k;
    panel.scale = at(static_cast<const A*>(epilogue.scale), column);
    panel.shift = at(static_cast<const A*>(epilogue.shift), column);
    panel.residual = at(static_cast<const T*>(epilogue.residual.data), column);
    panel.y = static_cast<T*>(epilogue.y.data) + column;
    panel.updates = in_registers ? 0 : 1;
    panel.update[0] = {sums, false, false};
    for (int64_t i = 0; i < rows.count; i++) {
      const RowPanel<O>& part = rows.panels[i];
      const MicroKernel<T> kernel = columns > kLanes ? pick_micro_kernel<T, 2>(part.rows, kAllRows)
                                                     : pick_micro_kernel<T, 1>(part.rows, kAllRows);
      rows.upcoming.fetch(call++, calls);
      // The next panel of B may be in memory: its lines come while the last rows of this one are multiplied.
      const int64_t left = rows.count - 1 - i;
      panel.ahead =
          q + 1 < panel_end && left < kLines ? k * kNR * static_cast<int64_t>(sizeof(O)) + left * kCacheLine : 0;
      kernel(panel, part);
      if (!in_registers) finish<T>(panel, part, activation, columns);
    }
  }
}

}  // namespace ik::cpu::IK_ISA
