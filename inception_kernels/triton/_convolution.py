"""The implicit product by pointers: forward convolutions and input gradients of any window, stride and dilation.

Output pixel (i, j) of image n reads input pixel (i STEP_H + FIRST_H + t DELTA_H, ...) for tap t = 0 .. TAPS_H - 1,
which is a forward convolution with STEP = stride, FIRST = -padding, DELTA = dilation; and, per residue class of pixels
modulo the stride, the gradient of its input. Rows of a tile are output pixels of all images in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from ._device import advance, unit_of
from ._epilogue import Epilogue, Moments, finish, store_moments
from ._roofline import LAUNCH_CLOCKS, TILE_CLOCKS
from ._split import Stages, pieces_of, splits_of
from .runtime import Device, device_of


@triton.jit
def tile_order(pid, TILES_M, TILES_K, GROUP: tl.constexpr):
    """Bands of GROUP row tiles across all channel tiles: neighbours in time share both operands in L2."""
    band = pid // (GROUP * TILES_K)
    height = tl.minimum(TILES_M - band * GROUP, GROUP)
    within = pid % (GROUP * TILES_K)
    return band * GROUP + within % height, within // height


@triton.jit(
    do_not_specialize=[
        "M", "H", "W", "C", "ROWS", "COLUMNS", "K", "x_n", "x_h", "x_w", "w_outer", "w_t", "y_n", "y_i", "y_j", "r_n",
        "r_i", "r_j", "TILES_M", "TILES_K", "TAPS_H", "TAPS_W", "STEP_H", "STEP_W", "FIRST_H", "FIRST_W", "DELTA_H",
        "DELTA_W", "TAP_0", "TAP_H", "TAP_W", "EACH",
    ]
)  # fmt: skip
def _convolution(
    x, weight, y, residual, bias, gamma, beta, mean, var, partial, counts, sums,
    M, H, W, C, ROWS, COLUMNS, K, x_n, x_h, x_w, w_outer, w_t, y_n, y_i, y_j, r_n, r_i, r_j, eps, TILES_M, TILES_K,
    TAPS_H, TAPS_W, STEP_H, STEP_W, FIRST_H, FIRST_W, DELTA_H, DELTA_W, TAP_0, TAP_H, TAP_W, EACH,
    BIAS: tl.constexpr, BN: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr, RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr, MOMENTS: tl.constexpr, SPLIT: tl.constexpr, FLAT_C: tl.constexpr,
    FLAT_W: tl.constexpr, PRECISION: tl.constexpr, C_UNIT: tl.constexpr, K_UNIT: tl.constexpr, W_UNIT: tl.constexpr,
    W_INNER_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """One tile; with SPLIT one piece of its depth, EACH steps, to sums [pieces, M, K] instead of an epilogue."""
    C = C * C_UNIT
    K = K * K_UNIT
    w_t = (w_t * W_UNIT).to(tl.int64)
    w_k = 1 if W_INNER_K else w_outer * W_UNIT
    w_c = w_outer * W_UNIT if W_INNER_K else 1
    tile, tile_k = tile_order(tl.program_id(0), TILES_M, TILES_K, GROUP)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    live = m < M
    n = (m // (ROWS * COLUMNS)).to(tl.int64)
    i = m // COLUMNS % ROWS
    j = m % COLUMNS
    h0 = i * STEP_H + FIRST_H
    w0 = j * STEP_W + FIRST_W
    k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    c = tl.arange(0, BLOCK_C)
    image = x + n * (x_n * C_UNIT)
    x_h = x_h * C_UNIT
    x_w = x_w * C_UNIT
    column = weight + k.to(tl.int64) * w_k + TAP_0 * w_t
    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    if FLAT_C > 0:
        # Few channels: taps and channels are one reduction, so that a step is not mostly empty. Divisors are constants.
        depth = TAPS_H * FLAT_W * FLAT_C
        corner = image + h0.to(tl.int64) * x_h + w0.to(tl.int64) * x_w
        for first in range(0, depth, BLOCK_C):
            e = first + c
            th = e // (FLAT_W * FLAT_C)
            tw = e // FLAT_C % FLAT_W
            ch = e % FLAT_C
            h = (h0[:, None] + (th * DELTA_H)[None, :]).to(tl.uint32, bitcast=True)  # a negative row is a large one
            w = (w0[:, None] + (tw * DELTA_W)[None, :]).to(tl.uint32, bitcast=True)
            ok = live[:, None] & (h < H.to(tl.uint32)) & (w < W.to(tl.uint32)) & (e < depth)[None, :]
            shift = th.to(tl.int64) * (DELTA_H * x_h) + tw * (DELTA_W * x_w) + ch
            a = tl.load(corner[:, None] + shift[None, :], mask=ok, other=0.0)
            at = (th * TAP_H + tw * TAP_W) * w_t + ch * w_c
            b = tl.load(column[None, :] + at[:, None], mask=(e < depth)[:, None] & (k < K)[None, :], other=0.0)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        # One loop over taps and channels, so that loads run ahead of products across taps; counters, not divisions.
        chunks = tl.cdiv(C, BLOCK_C)
        steps = TAPS_H * TAPS_W * chunks
        th = 0 * tile
        tw = 0 * tile
        first = 0 * tile
        if SPLIT:
            begin = tl.program_id(1) * EACH
            steps = tl.minimum(EACH, steps - begin)
            th = begin // chunks // TAPS_W
            tw = begin // chunks % TAPS_W
            first = begin % chunks * BLOCK_C
        tl.assume(steps > 0)
        for _ in range(steps):
            h = h0 + th * DELTA_H
            w = w0 + tw * DELTA_W
            ok = live & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            inside = first + c < C
            a = tl.load(
                (image + h.to(tl.int64) * x_h + w * x_w)[:, None] + (first + c)[None, :],
                mask=ok[:, None] & inside[None, :], other=0.0,
            )  # fmt: skip
            b = tl.load(
                (column + (th * TAP_H + tw * TAP_W) * w_t)[None, :] + ((first + c) * w_c)[:, None],
                mask=inside[:, None] & (k < K)[None, :], other=0.0,
            )  # fmt: skip
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
            first, tw, th = advance(first, tw, th, BLOCK_C, C, TAPS_W)
    inside = live[:, None] & (k < K)[None, :]
    if SPLIT:
        at = (tl.program_id(1).to(tl.int64) * M + m)[:, None] * K + k[None, :]
        tl.store(sums + at, acc, mask=inside)
    else:
        added = acc
        if RESIDUAL:
            at = n * (r_n * K_UNIT) + i.to(tl.int64) * (r_i * K_UNIT) + j * (r_j * K_UNIT)
            added = tl.load(residual + at[:, None] + k[None, :], mask=inside, other=0.0)
        u = finish(acc, added, bias, gamma, beta, mean, var, k, K, eps, BIAS, BN, GAMMA, BETA, RESIDUAL, ACTIVATION)
        stored = u.to(y.dtype.element_ty)
        if MOMENTS:
            store_moments(partial, counts, stored, live, tile, k, K)
        at = n * (y_n * K_UNIT) + i.to(tl.int64) * (y_i * K_UNIT) + j * (y_j * K_UNIT)
        tl.store(y + at[:, None] + k[None, :], stored, mask=inside)


@dataclass(frozen=True)
class Taps:
    """One dimension of a window: output i reads input i * step + first + t * delta with weight tap_first + t * tap."""

    count: int
    step: int
    first: int
    delta: int
    tap_first: int = 0
    tap: int = 1


@dataclass(frozen=True)
class Blocks:
    """A tile of `m` pixels x `k` outputs in steps of `c` channels; flat: taps and channels are one reduction.

    `splits` programs share its depth.
    """

    m: int
    k: int
    c: int
    warps: int
    stages: int
    flat: bool
    splits: int = 1


def adjacent_channels(x: Tensor) -> Tensor:
    """[N, C, H, W] whose channels are adjacent: x itself, or a channels-last copy."""
    return x if x.shape[1] == 1 or x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def pixel_strides(t: Tensor) -> tuple[int, int, int]:
    """Of [N, C, H, W]: from image to image, row to row and pixel to pixel; 0 where there is but one."""
    image, row, pixel = (t.stride(d) if t.shape[d] > 1 else 0 for d in (0, 2, 3))
    return image, row, pixel


def precision_of(x: Tensor) -> str:
    """How float32 is multiplied: as PyTorch's own flag for cuDNN's convolutions says."""
    return "tf32" if x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32 else "ieee"


_SIZES = ((128, 128, 8), (64, 128, 4), (128, 64, 4), (64, 64, 4), (128, 32, 4), (64, 32, 4), (64, 16, 4))
GROUP = 8  # pixel tiles that go through all outputs before the next: both operands stay in L2
_PRODUCTS = 1024  # a clock and multiprocessor
_FLAT_CHANNELS = 16  # with fewer, most of a step through one tap's channels would be empty


def configurations(
    M: int, K: int, C: int, taps: int, dtype: torch.dtype, precision: str, moments: bool, residual: bool, device: Device
) -> list[Blocks]:  # fmt: skip
    """Every tile that may be chosen for this shape: pruned by waste, by shared memory and by what spills."""
    flat = C < _FLAT_CHANNELS
    depth = taps * C if flat else C
    wide = dtype == torch.float32
    c = 16 if depth <= 16 else 32 if depth <= 32 or wide else 64
    found = []
    for m, k, warps in _SIZES:
        if k > max(16, 2 * K - 1) or k < min(K, 64) // 2:
            continue
        if (wide and m * k > 64 * 64) or (flat and warps > tuning.PROVEN_WARPS):
            continue
        if wide and ((m, k) == (128, 32) or (precision == "ieee" and m * k == 64 * 64)):
            continue  # it spills
        if wide and precision == "ieee" and moments and k == 16 and K > 16 and device.capability < (9, 0):
            continue  # likewise
        if m == 128 and k >= 64 and (residual or moments) and device.capability >= (10, 0):
            continue  # likewise
        if wide and precision == "tf32" and (m, k) == (64, 32) and device.capability >= (10, 0):
            continue  # likewise
        if not wide and moments and (m, k) == (64, 64) and device.capability < (9, 0):
            continue  # likewise
        programs = triton.cdiv(M, m) * triton.cdiv(K, k)
        splits = [1] if flat else splits_of(programs, taps * triton.cdiv(C, c), device.multiprocessors)
        stages = 3 if 3 * (m + k) * c * dtype.itemsize <= device.shared else 2
        for each in splits:
            if each > 1 and wide and precision == "ieee" and k == 32:
                continue  # it spills
            if each > 1 and (m, k, device.capability[0]) in ((128, 32, 8), (64, 128, 10)):
                continue  # likewise where the weight's outputs are adjacent, as for the input's gradient
            # In steps of 64 channels a piece of such a tile spills on sm_80, and a high one for an input's gradient.
            step = min(c, 32) if k == 32 and (each > 1 or m == 128) and device.capability < (9, 0) else c
            found.append(Blocks(m, k, step, warps, stages, flat, each))
    return found


_STEP_CLOCKS = 250  # at least: a load's latency over the stages


def predicted_cost(blocks: Blocks, M: int, K: int, C: int, taps: int, multiprocessors: int) -> float:
    """Clocks of the busiest multiprocessor, empty rows included; small tiles reread more."""
    programs = triton.cdiv(M, blocks.m) * triton.cdiv(K, blocks.k) * blocks.splits
    steps = 1 if blocks.flat else pieces_of(taps * triton.cdiv(C, blocks.c), blocks.splits)[0]
    traffic = 1.0 + 24.0 * (blocks.m + blocks.k) / (blocks.m * blocks.k)
    step = max(blocks.m * blocks.k * blocks.c / _PRODUCTS * traffic, _STEP_CLOCKS / blocks.stages)
    clocks = triton.cdiv(programs, multiprocessors) * (steps * step + TILE_CLOCKS)
    return clocks + (LAUNCH_CLOCKS if blocks.splits > 1 else 0)


def convolve(
    x: Tensor, weight: Tensor, weight_strides: tuple[int, int, int], y: Tensor, taps: tuple[Taps, Taps],
    epilogue: Epilogue, window_width: int, moments: bool = False,
) -> Moments | None:  # fmt: skip
    """Write y [N, K, ROWS, COLUMNS] (channels adjacent, any other strides) from x [N, C, H, W] (channels adjacent).

    weight_strides are those of (output channel, tap, input channel) in elements, taps counted row by row of a window
    that is window_width wide. y has at least one element, the window at least one tap.
    """
    N, C, H, W = x.shape
    _, K, ROWS, COLUMNS = y.shape
    M = N * ROWS * COLUMNS
    down, across = taps
    residual = epilogue.residual
    added = y if residual is None else residual
    x_strides, y_strides, added_strides = (pixel_strides(t) for t in (x, y, added))
    by_k, by_tap, by_c = weight_strides
    outer = by_c if by_k == 1 else by_k
    c_unit, k_unit = unit_of(C, *x_strides), unit_of(K, *y_strides, *added_strides)
    w_unit = unit_of(outer, by_tap)

    window = down.count * across.count

    def run(blocks: Blocks) -> Moments | None:
        tiles_m, tiles_k = triton.cdiv(M, blocks.m), triton.cdiv(K, blocks.k)
        stages = Stages.of(y, epilogue, moments, tiles_m, window * triton.cdiv(C, blocks.c), blocks.splits)
        _convolution[(tiles_m * tiles_k, stages.pieces)](
            x, weight, y, added, *stages.pointers(weight),
            M, H, W, C // c_unit, ROWS, COLUMNS, K // k_unit, *(stride // c_unit for stride in x_strides),
            outer // w_unit, by_tap // w_unit, *(stride // k_unit for stride in (*y_strides, *added_strides)),
            epilogue.eps, tiles_m, tiles_k, down.count, across.count, down.step, across.step, down.first, across.first,
            down.delta, across.delta, down.tap_first * window_width + across.tap_first, down.tap * window_width,
            across.tap, stages.each, C_UNIT=c_unit, K_UNIT=k_unit, W_UNIT=w_unit, W_INNER_K=by_k == 1,
            **stages.flags(), FLAT_C=C if blocks.flat else 0, FLAT_W=across.count if blocks.flat else 0,
            PRECISION=precision_of(x), BLOCK_M=blocks.m, BLOCK_K=blocks.k, BLOCK_C=blocks.c, GROUP=GROUP,
            num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip
        return stages.finish()

    def launch(blocks: Blocks) -> Tensor:
        run(blocks)
        return y

    device = device_of(x)
    shape: dict[str, tuning.Value] = {
        "N": N, "H": H, "W": W, "C": C, "K": K, "rows": ROWS, "columns": COLUMNS, "down": str(down),
        "across": str(across), "units": f"{c_unit} {k_unit} {w_unit}", "k_inner": by_k == 1,
        "residual": residual is not None, "moments": moments, "precision": precision_of(x),
    }  # fmt: skip
    chosen = tuning.choose(
        "convolution", x, shape,
        lambda: configurations(M, K, C, window, x.dtype, precision_of(x), moments, residual is not None, device),
        lambda blocks: predicted_cost(blocks, M, K, C, window, device.multiprocessors), launch, taps=window,
    )  # fmt: skip
    return run(chosen)


def forward_taps(window: int, stride: int, padding: int, dilation: int) -> Taps:
    return Taps(window, stride, -padding, dilation)


def gradient_taps(window: int, stride: int, padding: int, dilation: int, residue: int) -> Taps:
    """The taps that reach input pixels congruent to `residue` modulo the stride: pixel `residue + i * stride`.

    Output p reads input p * stride - padding + r * dilation, so input h is read by p = (h + padding - r * dilation) /
    stride wherever that is whole; the taps r for which it is form an arithmetic sequence.
    """
    reaching = [r for r in range(window) if (residue + padding - r * dilation) % stride == 0]
    if not reaching:
        return Taps(0, 1, 0, 0)
    first = reaching[0]
    step = reaching[1] - first if len(reaching) > 1 else 1
    return Taps(
        len(reaching), 1, (residue + padding - first * dilation) // stride, -step * dilation // stride, first, step
    )
