// Data and depthwise gradients of a separable convolution, one tile of grad_x rows at a time: the pointwise data
// gradient's strip, mid activation's mask, depthwise weight gradient, depthwise data gradient, input activation's mask.
// One panel of channels goes through all of them while it is in cache.

template <typename A>
inline void window_gradient(const A* grad, const A* strip, const int64_t* offset, int64_t taps, int64_t count,
                            int64_t step, A* sum) {
  int64_t t = 0;
  for (; t + 9 <= taps; t += 9) tap_gradient<9>(grad, strip, offset + t, count, step, sum + t * kColumns<A>);
  for (; t + 3 <= taps; t += 3) tap_gradient<3>(grad, strip, offset + t, count, step, sum + t * kColumns<A>);
  for (; t < taps; ++t) tap_gradient<1>(grad, strip, offset + t, count, step, sum + t * kColumns<A>);
}

template <typename T, Activation input, Activation mid>
void separable_tile(const SeparableData& data, const SeparableTile& tile, const SeparableScratch& scratch,
                    void* partial) {
  using A = Accum<T>;
  constexpr int64_t L = kLanes<A>, columns = kColumns<A>;
  const SeparableBackward& args = *data.args;
  const ConvShape& s = args.shape;
  const int64_t Q = s.Q(), taps = s.R * s.S;

  // The strip of the intermediate's gradient reaches as far as the depthwise data gradient reads.
  const int64_t y0 = smaller(tile.p0, floor_div(tile.h0 + s.pad_h - (s.R - 1) * s.dilation_h, s.stride_h));
  const int64_t y1 = larger(tile.p1, floor_div(tile.h1 - 1 + s.pad_h, s.stride_h) + 1);
  const int64_t x0 = smaller(0, floor_div(s.pad_w - (s.S - 1) * s.dilation_w, s.stride_w));
  const int64_t x1 = larger(Q, floor_div(s.W - 1 + s.pad_w, s.stride_w) + 1);
  const int64_t width = x1 - x0;
  // The strip of the input under the tile.
  const int64_t in_width = (Q - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1;
  const int64_t in_rows = (tile.p1 - tile.p0 - 1) * s.stride_h + (s.R - 1) * s.dilation_h + 1;

  A* grad_mid = static_cast<A*>(scratch.grad_mid);
  A* strip = static_cast<A*>(scratch.strip);
  A* line = static_cast<A*>(scratch.line);
  A* chosen = static_cast<A*>(scratch.weights);
  int64_t* forward_offset = scratch.offsets;
  int64_t* backward_offset = scratch.offsets + taps;
  for (int64_t t = 0; t < taps; ++t)
    forward_offset[t] = (t / s.S * s.dilation_h * in_width + t % s.S * s.dilation_w) * columns;

  const bool wants_weight = args.grad_depthwise_weight || args.grad_depthwise_bias;
  for (int64_t panel = tile.c0; panel < tile.c1; ++panel) {
    const int64_t c = panel * columns, left = s.C - c;
    const A* weight = static_cast<const A*>(data.packed_depthwise) + panel * (taps + 1) * columns;
    A* sums = static_cast<A*>(partial) + panel * (taps + 1) * columns;

    pack_strip_as<T, Activation::kNone>(tile.grad_mid, 0, tile.p1 - tile.p0, Q, s.C, c, y0 - tile.p0, y1 - y0, x0,
                                        width, grad_mid);

    // Mid activation's mask; depthwise weight and bias gradients.
    if (mid != Activation::kNone || wants_weight)
      pack_strip_as<T, input>(args.x, tile.n, s.H, s.W, s.C, c, tile.p0 * s.stride_h - s.pad_h, in_rows, -s.pad_w,
                              in_width, strip);
    if constexpr (mid != Activation::kNone)
      for (int64_t p = tile.p0; p < tile.p1; ++p) {
        tap_sum(strip + (p - tile.p0) * s.stride_h * in_width * columns, forward_offset, taps, weight,
                weight + taps * columns, Q, s.stride_w * columns, line);
        A* g = grad_mid + ((p - y0) * width - x0) * columns;
        for (int64_t i = 0; i < Q * columns; i += L)
          store(g + i, activation_gradient<mid, A>(load(g + i), load(line + i)));
      }
    if (wants_weight) {
      for (int64_t i = 0; i < (taps + 1) * columns; i += L) store(sums + i, Vector<A>{});
      for (int64_t p = tile.own0; p < tile.own1; ++p) {
        const A* g = grad_mid + ((p - y0) * width - x0) * columns;
        window_gradient(g, strip + (p - tile.p0) * s.stride_h * in_width * columns, forward_offset, taps, Q,
                        s.stride_w * columns, sums);
        Vector<A> bias0 = load(sums + taps * columns), bias1 = load(sums + taps * columns + L);
        for (int64_t q = 0; q < Q; ++q) {
          bias0 += load(g + q * columns);
          bias1 += load(g + q * columns + L);
        }
        store(sums + taps * columns, bias0);
        store(sums + taps * columns + L, bias1);
      }
    }

    // Depthwise data gradient, one residue of the stride at a time, and the input activation's mask.
    if (!args.grad_x.data) continue;
    for (int64_t h = tile.h0; h < tile.h1; ++h)
      for (int64_t phase = 0; phase < smaller(s.stride_w, s.W); ++phase) {
        int64_t used = 0;
        const bool all = s.stride_h == 1 && s.stride_w == 1;
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t y = h + s.pad_h - t / s.S * s.dilation_h, x = phase + s.pad_w - t % s.S * s.dilation_w;
          const int64_t p = floor_div(y, s.stride_h), q = floor_div(x, s.stride_w);
          if (p * s.stride_h != y || q * s.stride_w != x) continue;
          backward_offset[used] = ((p - y0) * width + q - x0) * columns;
          if (!all)
            for (int64_t i = 0; i < columns; i += L) store(chosen + used * columns + i, load(weight + t * columns + i));
          ++used;
        }
        const int64_t count = ceil_div(s.W - phase, s.stride_w);
        tap_sum<A>(grad_mid, backward_offset, used, all ? weight : chosen, nullptr, count, columns, line);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t w = phase + i * s.stride_w;
          T* out = pixel<T>(args.grad_x, tile.n, h, w) + c;
          Vector<A> v0 = load(line + i * columns), v1 = load(line + i * columns + L);
          if constexpr (input != Activation::kNone) {
            const T* x = pixel<T>(args.x, tile.n, h, w) + c;
            v0 = activation_gradient<input, A>(v0, load_up_to(x, left));
            if (left > L) v1 = activation_gradient<input, A>(v1, load_up_to(x + L, left - L));
          }
          store_up_to(out, v0, left);
          if (left > L) store_up_to(out + L, v1, left - L);
        }
      }
  }
}

template <typename T>
void separable_data(const SeparableData& data, const SeparableTile& tile, const SeparableScratch& scratch,
                    void* partial) {
  with_activation(data.args->input_activation, [&](auto input) {
    with_activation(data.args->mid_activation, [&](auto mid) {
      separable_tile<T, decltype(input)::value, decltype(mid)::value>(data, tile, scratch, partial);
    });
  });
}

template <typename T>
void store_doubles(const double* values, int64_t count, void* out) {
  for (int64_t i = 0; i < count; ++i) from_accum(static_cast<Accum<T>>(values[i]), static_cast<T*>(out) + i);
}
