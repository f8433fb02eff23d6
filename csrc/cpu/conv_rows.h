// The rows of A (gemm.h) of a dense convolution. A row is what one output pixel reads, in the order (r, s, c); it is
// never gathered. Neighbouring pixels' windows overlap in memory, at a constant pitch along a line of pixels: they are
// read from x itself, or, where the window leaves the image, the dtype differs or the pitch is a bad one, from a strip:
// the lines of x that a tile reads, copied once with their padding.
//
#pragma once
#include <type_traits>

#include "cpu/gemm.h"
#include "cpu/scratch.h"

namespace ik::cpu::IK_ISA {

// How the output pixels are cut into row panels, which depends on the geometry alone.
struct PixelLines {
  Geometry g;  // with rows and columns exchanged where that makes whole images lines
  bool exchanged;
  int64_t reach_h, reach_w;       // input rows and columns from a window's first to its last
  int64_t line_step, pixel_step;  // strip rows (columns) from one output row (column) to the next
  int64_t width;                  // strip columns
  int64_t lines, length, panels;  // lines of an image, pixels and row panels of a line

  PixelLines(const Geometry& geometry, int64_t most_rows) : g(geometry) {
    exchanged = g.R == 1 && g.S > 1 && g.stride_h == 1 && g.stride_w == 1;
    if (exchanged) {
      std::swap(g.H, g.W);
      std::swap(g.R, g.S);
      std::swap(g.pad_h, g.pad_w);
      std::swap(g.dilation_h, g.dilation_w);
      std::swap(g.P, g.Q);
    }
    reach_h = (g.R - 1) * g.dilation_h + 1;
    reach_w = (g.S - 1) * g.dilation_w + 1;
    line_step = smaller(g.stride_h, reach_h);
    pixel_step = smaller(g.stride_w, reach_w);
    width = (g.Q - 1) * pixel_step + reach_w;
    // A panel within one line leaves out the rows of its window that lie outside the image, one across two lines only
    // those of both; but it should not be a short one.
    const int64_t of_line = g.Q / ceil_div(g.Q, most_rows);
    const bool leaves_rows_out = g.R > 1 && g.pad_h > 0 && 2 * of_line > most_rows;
    const bool flat = line_step == 1 && width == g.Q && !leaves_rows_out;
    lines = flat ? 1 : g.P;
    length = flat ? g.P * g.Q : g.Q;
    panels = ceil_div(length, most_rows);
  }
  int64_t panels_of_image() const { return lines * panels; }
  int64_t strip_lines(int64_t p_begin, int64_t p_end) const { return (p_end - p_begin - 1) * line_step + reach_h; }

  template <typename View>
  View view(View v) const {
    if (exchanged) std::swap(v.stride_h, v.stride_w);
    return v;
  }
  // The pixels of row panel `index` of an image, numbered within the image.
  void pixels(int64_t index, int64_t* begin, int64_t* end) const {
    const int64_t line = index / panels, panel = index % panels;
    *begin = line * length + length * panel / panels;
    *end = line * length + length * (panel + 1) / panels;
  }
};

// n channels, which lie next to each other, as operands.
template <typename T>
inline void copy_channels(const T* from, Operand<T>* to, int64_t n) {
  constexpr int kLanes = Vec<Operand<T>>::kLanes, kCount = kLanes * kDepth<T>;
  for (; n >= kCount; n -= kCount, from += kCount, to += kLanes) store(to, load_operands(from, kCount));
  if (n > 0) store(to, load_operands(from, static_cast<int>(n)), static_cast<int>(operands<T>(n)));
}
template <typename O>
inline void zero_operands(O* to, int64_t n) {
  for (int64_t i = 0; i < n; i++) to[i] = O{};
}

template <typename T>
class ConvRows {
 public:
  using O = Operand<T>;
  static constexpr int64_t kMR = Gemm<O>::kMR;

  // Row panels [begin, end), numbered through all images. The result lives in this thread's scratch.
  static Rows<O> of(const ConvTask& task, int64_t begin, int64_t end) { return ConvRows(task, begin, end).build(); }

 private:
  // The row panels of one image, and the output rows they lie in.
  struct Part {
    int64_t n, begin, end, p_begin, p_end;
  };

  ConvRows(const ConvTask& task, int64_t begin, int64_t end)
      : lines_(task.geometry, kMR),
        g_(lines_.g),
        x_(lines_.view(task.x)),
        y_(lines_.view(task.epilogue.y)),
        residual_(lines_.view(task.epilogue.residual)),
        channels_(operands<T>(g_.C)),
        begin_(begin),
        end_(end) {}

  Part part_at(int64_t panel) const {
    const int64_t images = lines_.panels_of_image(), n = panel / images;
    Part part{n, panel - n * images, smaller(end_ - n * images, images), 0, 0};
    int64_t first, last, unused;
    lines_.pixels(part.begin, &first, &unused);
    lines_.pixels(part.end - 1, &unused, &last);
    part.p_begin = first / g_.Q;
    part.p_end = (last - 1) / g_.Q + 1;
    return part;
  }
  template <typename Body>
  void for_each_part(Body body) const {
    for (int64_t panel = begin_; panel < end_;) {
      const Part part = part_at(panel);
      body(part);
      panel += part.end - part.begin;
    }
  }

  static bool bad_pitch(int64_t operands) {
    return operands * static_cast<int64_t>(sizeof(O)) % 4096 == 0;  // all rows would fight for the same sets of L1
  }

  bool readable_in_place() const {
    if constexpr (sizeof(O) != kDepth<T> * sizeof(T)) return false;
    if ((g_.C | x_.stride_n | x_.stride_h | x_.stride_w) % kDepth<T> != 0) return false;
    if (bad_pitch(g_.stride_w * x_.stride_w / kDepth<T>)) return false;
    if (lines_.lines == 1 && g_.P > 1 && g_.stride_h * x_.stride_h != g_.Q * g_.stride_w * x_.stride_w) return false;
    if (g_.pad_w > 0 || (g_.Q - 1) * g_.stride_w - g_.pad_w + lines_.reach_w > g_.W) return false;
    bool inside = true;
    for_each_part([&](const Part& part) {
      const int64_t top = part.p_begin * g_.stride_h - g_.pad_h;
      const int64_t bottom = (part.p_end - 1) * g_.stride_h - g_.pad_h + lines_.reach_h;
      inside = inside && top >= 0 && bottom <= g_.H;
    });
    return inside;
  }

  Rows<O> build() {
    RowPanel<O>* const panels =
        static_cast<RowPanel<O>*>(scratch(Scratch::kRows, static_cast<size_t>(end_ - begin_) * sizeof(RowPanel<O>)));
    RowPanel<O>* out = panels;
    if (readable_in_place()) {
      const int64_t image = x_.stride_n / kDepth<T>, line = x_.stride_h / kDepth<T>, pixel = x_.stride_w / kDepth<T>;
      const Segment* const segments = make_segments(pixel, g_.dilation_h * line);
      const O* const x = static_cast<const O*>(x_.data);
      for_each_part([&](const Part& part) {
        const int64_t top = part.p_begin * g_.stride_h - g_.pad_h;
        fill(part, x + part.n * image + top * line - g_.pad_w * pixel, g_.stride_h * line, g_.stride_w * pixel, &out);
      });
      return {panels, end_ - begin_, g_.stride_w * pixel, segments, {}};
    }
    // A vector more than a bad pitch: pixels need not be aligned.
    const int64_t pixel = bad_pitch(lines_.pixel_step * channels_) ? channels_ + Vec<O>::kLanes : channels_;
    const int64_t line = lines_.width * pixel;
    const Segment* const segments = make_segments(pixel, g_.dilation_h * line);
    int64_t strip_lines = 0;
    for_each_part([&](const Part& part) { strip_lines += lines_.strip_lines(part.p_begin, part.p_end); });
    O* strip = static_cast<O*>(scratch(Scratch::kTile, static_cast<size_t>(strip_lines * line) * sizeof(O)));
    for_each_part([&](const Part& part) {
      const int64_t count = lines_.strip_lines(part.p_begin, part.p_end);
      copy_strip(part, count, pixel, strip);
      fill(part, strip, lines_.line_step * line, lines_.pixel_step * pixel, &out);
      strip += count * line;
    });
    return {panels, end_ - begin_, lines_.pixel_step * pixel, segments, {}};
  }

  // The row panels of a part whose first window begins at `a`.
  void fill(const Part& part, const O* a, int64_t line_pitch, int64_t pixel_pitch, RowPanel<O>** out) const {
    const auto top = [&](int64_t p) { return p * g_.stride_h - g_.pad_h; };
    for (int64_t index = part.begin; index < part.end; index++) {
      int64_t begin, end;
      lines_.pixels(index, &begin, &end);
      RowPanel<O>* const panel = (*out)++;
      int64_t p = begin / g_.Q, q = begin % g_.Q;
      // Window rows above the image even for the last pixel, and below it even for the first one.
      const int64_t above = smaller(g_.R, larger(0, ceil_div(-top((end - 1) / g_.Q), g_.dilation_h)));
      const int64_t inside = smaller(g_.R, larger(0, ceil_div(g_.H - top(p), g_.dilation_h)));
      const bool any = above < inside;
      panel->segment_begin = static_cast<int>(any ? above * segments_of_row_ : 0);
      panel->segment_end = static_cast<int>((any ? inside : g_.R) * segments_of_row_);
      panel->a = a + (p - part.p_begin) * line_pitch + q * pixel_pitch;
      panel->rows = static_cast<int>(end - begin);
      for (int i = 0; i < panel->rows; i++) {
        panel->y[i] = part.n * y_.stride_n + p * y_.stride_h + q * y_.stride_w;
        panel->residual[i] = part.n * residual_.stride_n + p * residual_.stride_h + q * residual_.stride_w;
        if (++q == g_.Q) q = 0, p++;
      }
    }
  }

  void copy_strip(const Part& part, int64_t count, int64_t pixel, O* strip) const {
    const int64_t width = lines_.width, pixel_step = lines_.pixel_step;
    const bool gaps = pixel_step < g_.stride_w;
    const bool contiguous = x_.stride_w == g_.C && pixel == channels_ && g_.C % kDepth<T> == 0;
    const int64_t left = smaller(width, larger(0, g_.pad_w)), right = smaller(width, larger(left, g_.W + g_.pad_w));
    for (int64_t i = 0; i < count; i++, strip += width * pixel) {
      const int64_t h = (part.p_begin + i / lines_.line_step) * g_.stride_h + i % lines_.line_step - g_.pad_h;
      if (h < 0 || h >= g_.H) {
        zero_operands(strip, width * pixel);
        continue;
      }
      const T* const from = static_cast<const T*>(x_.data) + part.n * x_.stride_n + h * x_.stride_h;
      if (gaps) {
        for (int64_t j = 0; j < width; j++) {
          const int64_t w = j / pixel_step * g_.stride_w + j % pixel_step - g_.pad_w;
          if (w < 0 || w >= g_.W)
            zero_operands(strip + j * pixel, channels_);
          else
            copy_channels(from + w * x_.stride_w, strip + j * pixel, g_.C);
        }
        continue;
      }
      zero_operands(strip, left * pixel);
      if (contiguous)
        copy_channels(from + (left - g_.pad_w) * g_.C, strip + left * pixel, (right - left) * g_.C);
      else
        for (int64_t j = left; j < right; j++)
          copy_channels(from + (j - g_.pad_w) * x_.stride_w, strip + j * pixel, g_.C);
      zero_operands(strip + right * pixel, (width - right) * pixel);
    }
  }

  // `pixel` and `tap_h` are the operands from one pixel to the next and from one tap to the one below.
  Segment* make_segments(int64_t pixel, int64_t tap_h) {
    const int64_t tap_w = g_.dilation_w * pixel;
    // Where chains end must not depend on whether the taps of a window row are adjacent in memory.
    const bool short_rows = 2 * g_.S * channels_ <= 3 * kChain, merged = short_rows && tap_w == channels_;
    const int64_t taps = merged ? 1 : g_.S, run = merged ? g_.S * channels_ : channels_;
    const int64_t pieces = short_rows ? 1 : ceil_div(run, kChain);
    segments_of_row_ = taps * pieces;
    Segment* const segments = static_cast<Segment*>(
        scratch(Scratch::kSegments, static_cast<size_t>(g_.R * segments_of_row_) * sizeof(Segment)));
    Segment* out = segments;
    int64_t k = 0, chained = 0;
    for (int64_t r = 0; r < g_.R; r++)
      for (int64_t s = 0; s < taps; s++)
        for (int64_t i = 0; i < pieces; i++) {
          const int64_t begin = run * i / pieces, length = run * (i + 1) / pieces - begin;
          chained += length;
          const bool ends_chain = chained >= kChain && (!short_rows || s == taps - 1);
          *out++ = {k, r * tap_h + s * tap_w + begin, length, ends_chain};
          if (ends_chain) chained = 0;
          k += length;
        }
    return segments;
  }

  const PixelLines lines_;
  const Geometry& g_;
  const NhwcInput x_;
  const NhwcOutput y_;
  const NhwcInput residual_;
  const int64_t channels_;  // operands of a pixel
  const int64_t begin_, end_;
  int64_t segments_of_row_ = 0;
};

}  // namespace ik::cpu::IK_ISA
