"""Depthwise convolution with stride 1 by rolling rows: forward, and the gradient of the input.

A lane is one channel of one image in COLUMNS neighbouring output columns, and walks down the image. Each row of its
COLUMNS + S - 1 input columns is loaded once and serves all R taps: the R - 1 output rows that it does not complete are
carried as partial sums in registers. Lanes run over channels, then columns, then images, so that none is empty but in
the last block, and a warp's lanes are neighbours in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from ._device import activate, activation_gradient, load_vector


@triton.jit
def _load_row(x, h, w0, live, end, W, x_h, x_w, WIDTH: tl.constexpr):
    """Columns w0 .. w0 + WIDTH - 1 of row h, a tensor each; zero outside of the image and from row `end` on."""
    inside = live & (h >= 0) & (h < end)
    row = x + h * x_h
    values = ()
    for i in tl.static_range(WIDTH):
        ok = inside & (w0 + i >= 0) & (w0 + i < W)
        values = values + (tl.load(row + i * x_w, mask=ok, other=0.0),)
    return values


@triton.jit
def _taps(values, weight, r: tl.constexpr, i: tl.constexpr, start, S: tl.constexpr):
    """start + what the row contributes to output column i through row r of the window."""
    for s in tl.static_range(S):
        start += values[i + s] * weight[r * S + s]
    return start


@triton.jit(
    do_not_specialize=[
        "N", "H", "W", "C", "P", "Q", "x_n", "x_h", "x_w", "v_n", "v_h", "v_w", "ROWS", "GROUPS", "PAD_H", "PAD_W",
    ]
)  # fmt: skip
def depthwise_rows(
    x, weight, bias, y, v, grad, grad_out, N, H, W, C, P, Q, x_n, x_h, x_w, v_n, v_h, v_w, ROWS, GROUPS, PAD_H, PAD_W,
    UNIT: tl.constexpr, R: tl.constexpr, S: tl.constexpr, BIAS: tl.constexpr, BEFORE: tl.constexpr,
    AFTER: tl.constexpr, MASK: tl.constexpr, GRAD: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """u = depthwise(BEFORE(x)) + bias; y [N, P, Q, C] = AFTER(u) MASK'(v); with GRAD grad_out = grad AFTER'(u), too.

    weight is [R S, C]; v [N, C, P, Q] has adjacent channels; grad and grad_out are [N, P, Q, C]. PAD may be negative.
    """
    C = C * UNIT
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = e % C
    group = e // C
    q0 = group % GROUPS * COLUMNS
    live = group // GROUPS < N
    n = (group // GROUPS).to(tl.int64)
    w0 = q0 - PAD_W
    begin = tl.program_id(1) * ROWS
    end = tl.minimum(begin + ROWS, P)
    x_w = (x_w * UNIT).to(tl.int64)
    x_h = (x_h * UNIT).to(tl.int64)
    v_w = (v_w * UNIT).to(tl.int64)
    v_h = (v_h * UNIT).to(tl.int64)
    x = x + n * (x_n * UNIT) + w0 * x_w + c
    v = v + n * (v_n * UNIT) + q0 * v_w + c
    y_h = Q.to(tl.int64) * C
    out = (n * P * Q + q0) * C + c
    k = ()
    for i in tl.static_range(R * S):
        k = k + (tl.load(weight + i * C + c, mask=live, other=0.0).to(tl.float32),)
    start = load_vector(bias, c, live, BIAS, 0.0)
    sums = ()
    for _ in tl.static_range((R - 1) * COLUMNS):
        sums = sums + (start,)
    last = tl.minimum(end - PAD_H + R - 1, H)  # the first row that nothing reads
    following = _load_row(x, begin - PAD_H, w0, live, last, W, x_h, x_w, COLUMNS + S - 1)
    for p in range(begin - R + 1, end):  # row p is completed by input row p + R - 1 - PAD_H
        row = following
        following = _load_row(x, p + R - PAD_H, w0, live, last, W, x_h, x_w, COLUMNS + S - 1)  # in flight meanwhile
        values = ()
        for i in tl.static_range(COLUMNS + S - 1):
            values = values + (activate(row[i].to(tl.float32), BEFORE),)
        for i in tl.static_range(COLUMNS):
            u = _taps(values, k, R - 1, i, sums[i], S)
            ok = live & (q0 + i < Q) & (p >= begin)
            at = out + p * y_h + i * C
            if GRAD:
                g = tl.load(grad + at, mask=ok, other=0.0).to(tl.float32)
                tl.store(grad_out + at, activation_gradient(g, u, AFTER).to(grad_out.dtype.element_ty), mask=ok)
            u = activate(u, AFTER)
            if MASK != "none":
                seen = tl.load(v + p * v_h + i * v_w, mask=ok, other=0.0).to(tl.float32)
                u = activation_gradient(u, seen, MASK)
            tl.store(y + at, u.to(y.dtype.element_ty), mask=ok)
        rolled = ()
        for j in tl.static_range(R - 2):
            for i in tl.static_range(COLUMNS):
                rolled = rolled + (_taps(values, k, R - 2 - j, i, sums[(j + 1) * COLUMNS + i], S),)
        for i in tl.static_range(COLUMNS):
            rolled = rolled + (_taps(values, k, 0, i, start, S),)
        sums = rolled


@dataclass(frozen=True)
class Rows:
    """A program: `block` lanes of `columns` output columns, `rows` output rows each."""

    columns: int
    rows: int
    block: int
    warps: int

    def programs(self, N: int, C: int, P: int, Q: int) -> tuple[int, int]:
        return triton.cdiv(N * C * triton.cdiv(Q, self.columns), self.block), triton.cdiv(P, self.rows)


def can_roll(R: int, S: int, stride: tuple[int, int], dilation: tuple[int, int]) -> bool:
    """Whether the window's partial sums fit into registers, and rows follow each other."""
    return stride == (1, 1) and dilation == (1, 1) and 2 <= R <= 5 and S <= 5


def configurations(P: int, Q: int, R: int, S: int) -> list[Rows]:
    """Every program that may be chosen: more columns reuse more, fewer rows are more programs."""
    widest = 4 if R * S <= 9 else 2
    heights = sorted({P, *(triton.cdiv(P, parts) for parts in (2, 4, 8) if 3 * parts <= P)})
    return [
        Rows(columns, rows, block, 4)
        for columns in range(2, widest + 1)
        if columns == 2 or columns < 2 * Q
        for rows in heights
        for block in (256, 512)
    ]


# Instructions of a thread, counted in the compiled kernels: a row, each column of it, and each element beside its taps.
_ROW, _COLUMN, _ELEMENT = 45, 10, 6
_PROGRAMS = 4  # that a multiprocessor runs at once


def predicted_cost(rows: Rows, N: int, C: int, P: int, Q: int, window: tuple[int, int], multiprocessors: int) -> float:
    """Instructions of the busiest multiprocessor's threads, the rows above a program's first included."""
    R, S = window
    lanes, bands = rows.programs(N, C, P, Q)
    waves = triton.cdiv(lanes * bands, _PROGRAMS * multiprocessors)
    elements = rows.block / (32 * rows.warps)
    return waves * (rows.rows + R - 1) * (_ROW + rows.columns * (_COLUMN + elements * (R * S + _ELEMENT)))
