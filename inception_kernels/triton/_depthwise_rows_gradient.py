"""Gradient of the depthwise weight with stride 1 by rolling rows.

A strip is COLUMNS neighbouring output columns of IMAGES images, all the way down. Each row of its COLUMNS + S - 1 input
columns is loaded once and meets the gradients of all R output rows that it reaches: the R - 1 rows before it are still
in registers. The strip's place is one for all lanes, so that every bound but that of the images is a scalar.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._convolution import pixel_strides
from ._device import activate


@triton.jit
def _load_row(row, w0, step, inside, end, WIDTH: tl.constexpr):
    """Columns w0 .. w0 + WIDTH - 1, a tensor each; zero before 0 and from `end` on. `row` points to the first."""
    values = ()
    for i in tl.static_range(WIDTH):
        w = w0 + i
        values = values + (tl.load(row + i * step, mask=inside & (w >= 0) & (w < end), other=0.0),)
    return values


@triton.jit
def _activated(values, BEFORE: tl.constexpr, WIDTH: tl.constexpr):
    found = ()
    for i in tl.static_range(WIDTH):
        found = found + (activate(values[i].to(tl.float32), BEFORE),)
    return found


@triton.jit
def _add_column(sums, window, g, i: tl.constexpr, R: tl.constexpr, S: tl.constexpr, WIDTH: tl.constexpr):
    """sums + output column i's share: its gradient times the R rows of the window, and the gradient itself."""
    added = ()
    for tap in tl.static_range(R * S):
        added = added + (sums[tap] + g * window[tap // S * WIDTH + i + tap % S],)
    return added + (sums[R * S] + g,)


@triton.jit(
    do_not_specialize=[
        "N", "H", "W", "C", "P", "Q", "x_n", "x_h", "x_w", "GROUPS", "EACH", "PAD_H", "PAD_W",
    ]
)  # fmt: skip
def depthwise_rows_gradient(
    grad, x, partial, N, H, W, C, P, Q, x_n, x_h, x_w, GROUPS, EACH, PAD_H, PAD_W, UNIT: tl.constexpr, R: tl.constexpr,
    S: tl.constexpr, INPUT: tl.constexpr, COLUMNS: tl.constexpr, IMAGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """partial [pieces, R S + 1, C]: per tap the sum of grad times INPUT(x) over EACH strips; the last is grad's own.

    grad is [N, P, Q, C], x [N, C, H, W] with adjacent channels.
    """
    WIDTH: tl.constexpr = COLUMNS + S - 1
    C = C * UNIT
    x_h = (x_h * UNIT).to(tl.int64)
    x_w = (x_w * UNIT).to(tl.int64)
    g_p = Q.to(tl.int64) * C
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    sums = ()
    for _ in tl.static_range(R * S + 1):
        sums = sums + (tl.zeros((IMAGES, CHANNELS), tl.float32),)
    begin = tl.program_id(1) * EACH
    for strip in range(begin, begin + EACH):
        q0 = strip % GROUPS * COLUMNS
        n = strip // GROUPS * IMAGES + tl.arange(0, IMAGES)
        live = (n < N)[:, None] & (c < C)[None, :]
        w0 = q0 - PAD_W
        image = x + (n.to(tl.int64) * (x_n * UNIT) + (w0 * x_w - PAD_H * x_h))[:, None] + c[None, :]
        pixel = grad + (n.to(tl.int64) * P * g_p + q0 * C)[:, None] + c[None, :]
        rows = ()
        for r in tl.static_range(R - 1):
            h = r - PAD_H
            row = _load_row(image, w0, x_w, live & (h >= 0) & (h < H), W, WIDTH)
            rows = rows + _activated(row, INPUT, WIDTH)
            image += x_h
        h = R - 1 - PAD_H
        next_x = _load_row(image, w0, x_w, live & (h >= 0) & (h < H), W, WIDTH)
        next_g = _load_row(pixel, q0, C, live, Q, COLUMNS)
        for p in range(P):
            window = rows + _activated(next_x, INPUT, WIDTH)
            g = _activated(next_g, "none", COLUMNS)
            h = p + R - PAD_H
            image += x_h
            pixel += g_p
            next_x = _load_row(image, w0, x_w, live & (h >= 0) & (h < H), W, WIDTH)  # in flight meanwhile
            next_g = _load_row(pixel, q0, C, live & (p + 1 < P), Q, COLUMNS)
            sums = _add_column(sums, window, g[0], 0, R, S, WIDTH)
            for i in tl.static_range(1, COLUMNS):
                if q0 + i < Q:  # a branch: a gradient of zero would spread a NaN of x to taps that do not meet it
                    sums = _add_column(sums, window, g[i], i, R, S, WIDTH)
            rows = ()
            for i in tl.static_range((R - 1) * WIDTH):
                rows = rows + (window[WIDTH + i],)
    out = partial + tl.program_id(1).to(tl.int64) * (R * S + 1) * C + c
    for tap in tl.static_range(R * S + 1):
        tl.store(out + tap * C, tl.sum(sums[tap], axis=0), mask=c < C)


@dataclass(frozen=True)
class Strips:
    """A program: `columns` output columns of `images` images and `channels` channels at a time."""

    columns: int
    images: int
    channels: int
    warps: int

    def strips(self, N: int, Q: int) -> int:
        return triton.cdiv(Q, self.columns) * triton.cdiv(N, self.images)

    def pieces(self, N: int, C: int, Q: int) -> tuple[int, int]:
        """(strips a program, programs for each block of channels): of a size that depends on the shape alone."""
        strips = self.strips(N, Q)
        each = triton.cdiv(strips, max(1, min(_MAX_PIECES, _PROGRAMS // triton.cdiv(C, self.channels))))
        return each, triton.cdiv(strips, each)


_PROGRAMS = 2048
_MAX_PIECES = 256
_IMAGES = 4  # of any batch larger than one
_BLOCK = 256  # channels and images: two elements a thread
_SUMS_OF_FEW = 9  # taps; with more a wide strip spills


def configurations(N: int, R: int, S: int) -> list[Strips]:
    """Every program that may be chosen: more columns load less for each gradient."""
    images = _IMAGES if N > 1 else 1
    # A wide strip of a single image spills in float32 on sm_100.
    widths = (2, 4) if R * S <= _SUMS_OF_FEW and images > 1 else (2,)
    return [Strips(columns, images, _BLOCK // images, 4) for columns in widths]


# Instructions of a thread, counted in the compiled kernels: a row, each column of x, and each element beside its taps.
_ROW, _COLUMN, _ELEMENT = 12, 12, 8
_RESIDENT = 4  # programs that a multiprocessor runs at once


def predicted_cost(
    strips: Strips, N: int, C: int, P: int, Q: int, window: tuple[int, int], multiprocessors: int
) -> float:
    """Instructions of the busiest multiprocessor's threads, empty columns and images included."""
    R, S = window
    each, pieces = strips.pieces(N, C, Q)
    waves = triton.cdiv(triton.cdiv(C, strips.channels) * pieces, _RESIDENT * multiprocessors)
    elements = strips.images * strips.channels / (32 * strips.warps)
    row = _ROW + (strips.columns + S - 1) * _COLUMN + strips.columns * elements * (R * S + _ELEMENT)
    return waves * each * (P + R - 1) * row


def partial_sums(
    grad: Tensor, x: Tensor, window: tuple[int, int], padding: tuple[int, int], before: str, strips: Strips, unit: int
) -> Tensor:  # fmt: skip
    """[pieces, R S + 1, C] float32 from grad [N, C, P, Q] channels-last and x [N, C, H, W] with adjacent channels.

    C and the strides of x are multiples of `unit`.
    """
    N, C, P, Q = grad.shape
    H, W = x.shape[2:]
    R, S = window
    each, pieces = strips.pieces(N, C, Q)
    partial = torch.empty((pieces, R * S + 1, C), dtype=torch.float32, device=grad.device)
    depthwise_rows_gradient[(triton.cdiv(C, strips.channels), pieces)](
        grad, x, partial, N, H, W, C // unit, P, Q, *(stride // unit for stride in pixel_strides(x)),
        triton.cdiv(Q, strips.columns), each, *padding, UNIT=unit, R=R, S=S, INPUT=before, COLUMNS=strips.columns,
        IMAGES=strips.images, CHANNELS=strips.channels, num_warps=strips.warps, num_stages=1,
    )  # fmt: skip
    return partial
