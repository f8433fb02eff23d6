"""Gradient of a dense weight: per tap the product of grad_z^T [K, M] and the shifted x [M, C] over all pixels M.

The pixels are cut into pieces; each piece's product goes to its own place, and the pieces are added in order, so that
the result is the same in every run. By tensor descriptors where they can, with `m` images at one pixel as a step: both
operands come from shared memory as they lie there, pixels first. By pointers elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import tuning
from ._convolution import pixel_strides, precision_of
from ._convolution_descriptor import joined_views, unsupported
from ._device import advance, unit_of
from ._roofline import L2_BYTES, TILE_CLOCKS, step_clocks
from ._split import pieces_of
from .runtime import Device, device_of

_ELEMENTS = 1024  # elements a program of the final sum


@triton.jit
def _store_piece(partial, acc, k, c, K, C, TAPS):
    """acc [K, C] of this program's tap and piece, to partial [pieces, K, TAPS, C]."""
    piece = partial + tl.program_id(2).to(tl.int64) * (K * TAPS * C)
    at = ((k * TAPS + tl.program_id(1)) * C)[:, None] + c[None, :]
    tl.store(piece + at, acc, mask=(k < K)[:, None] & (c < C)[None, :])


@triton.jit(
    do_not_specialize=["P", "Q", "K", "C", "S", "TAPS", "PAD_H", "PAD_W", "DILATION_H", "DILATION_W", "TILES_C",
                       "BLOCKS_N", "EACH"]
)  # fmt: skip
def _product_descriptor(
    grad_z, x, partial, P, Q, K, C, S, TAPS, PAD_H, PAD_W, DILATION_H, DILATION_W, TILES_C, BLOCKS_N, EACH,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A step is BLOCK_M images at one output pixel; images count fastest. Images beyond the last are zero in both."""
    K = K * 8  # so the compiler knows: the host refuses any other numbers of channels
    C = C * 8
    k0 = tl.program_id(0) // TILES_C * BLOCK_K
    c0 = tl.program_id(0) % TILES_C * BLOCK_C
    down = tl.program_id(1) // S * DILATION_H - PAD_H
    across = tl.program_id(1) % S * DILATION_W - PAD_W
    begin = tl.program_id(2) * EACH
    steps = tl.minimum(EACH, P * Q * BLOCKS_N - begin)
    n = begin % BLOCKS_N
    q = begin // BLOCKS_N % Q
    p = begin // BLOCKS_N // Q
    acc = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    tl.assume(steps > 0)
    for _ in tl.range(0, steps, num_stages=STAGES):
        a = grad_z.load([p, q, n * BLOCK_M, k0]).reshape(BLOCK_M, BLOCK_K)
        b = x.load([p + down, q + across, n * BLOCK_M, c0]).reshape(BLOCK_M, BLOCK_C)
        acc = tl.dot(a.T, b, acc)
        n, q, p = advance(n, q, p, 1, BLOCKS_N, Q)
    _store_piece(partial, acc, k0 + tl.arange(0, BLOCK_K), c0 + tl.arange(0, BLOCK_C), K, C, TAPS)


@triton.jit(
    do_not_specialize=["M", "H", "W", "C", "P", "Q", "K", "g_n", "g_p", "g_q", "x_n", "x_h", "x_w", "STEP_N", "STEP_P",
                       "STEP_Q", "S", "TAPS", "STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W", "DILATION_H", "DILATION_W",
                       "TILES_C", "EACH"]
)  # fmt: skip
def _product(
    grad_z, x, partial, M, H, W, C, P, Q, K, g_n, g_p, g_q, x_n, x_h, x_w, STEP_N, STEP_P, STEP_Q, S, TAPS, STRIDE_H,
    STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W, TILES_C, EACH, C_UNIT: tl.constexpr, K_UNIT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A step is BLOCK_M output pixels in order: BLOCK_M = (STEP_N P + STEP_P) Q + STEP_Q."""
    C = C * C_UNIT
    K = K * K_UNIT
    k = tl.program_id(0) // TILES_C * BLOCK_K + tl.arange(0, BLOCK_K)
    c = tl.program_id(0) % TILES_C * BLOCK_C + tl.arange(0, BLOCK_C)
    down = tl.program_id(1) // S * DILATION_H - PAD_H
    across = tl.program_id(1) % S * DILATION_W - PAD_W
    begin = tl.program_id(2) * EACH
    steps = tl.minimum(EACH, tl.cdiv(M, BLOCK_M) - begin)
    m = begin * BLOCK_M + tl.arange(0, BLOCK_M)
    n = m // (P * Q)
    p = m // Q % P
    q = m % Q
    grad_z = grad_z + k
    x = x + c
    acc = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    tl.assume(steps > 0)
    for _ in range(steps):
        live = m < M
        h = p * STRIDE_H + down
        w = q * STRIDE_W + across
        ok = live & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        image = n.to(tl.int64)
        at = image * (g_n * K_UNIT) + p * (g_p * K_UNIT).to(tl.int64) + q * (g_q * K_UNIT)
        a = tl.load(grad_z[None, :] + at[:, None], mask=live[:, None] & (k < K)[None, :], other=0.0)
        at = image * (x_n * C_UNIT) + h * (x_h * C_UNIT).to(tl.int64) + w * (x_w * C_UNIT)
        b = tl.load(x[None, :] + at[:, None], mask=ok[:, None] & (c < C)[None, :], other=0.0)
        acc = tl.dot(a.T, b, acc, input_precision=PRECISION)
        m += BLOCK_M
        q += STEP_Q  # a sum in mixed radix: each digit carries one at most
        p += STEP_P + tl.where(q >= Q, 1, 0)
        q = tl.where(q >= Q, q - Q, q)
        n += STEP_N + tl.where(p >= P, 1, 0)
        p = tl.where(p >= P, p - P, p)
    _store_piece(partial, acc, k, c, K, C, TAPS)


@triton.jit(do_not_specialize=["total", "pieces"])
def add_pieces(partial, out, total, pieces, ELEMENTS: tl.constexpr):
    """out [total] = the sum over pieces of partial [pieces, total], in order."""
    e = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    acc = tl.zeros((ELEMENTS,), tl.float32)
    for _ in range(pieces):
        acc += tl.load(partial + e, mask=e < total, other=0.0)
        partial += total
    tl.store(out + e, acc.to(out.dtype.element_ty), mask=e < total)


def sum_of_pieces(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """[pieces, ...] -> [...] of dtype."""
    out = torch.empty(partial.shape[1:], dtype=dtype, device=partial.device)
    total = out.numel()
    add_pieces[(triton.cdiv(total, _ELEMENTS),)](partial, out, total, partial.shape[0], ELEMENTS=_ELEMENTS)
    return out


@dataclass(frozen=True)
class Tile:
    """k x c of the gradient, in steps of m pixels; `splits` programs share the pixels of a tap."""

    k: int
    c: int
    m: int
    warps: int
    stages: int
    splits: int

    def programs(self, K: int, C: int, taps: int) -> int:
        return triton.cdiv(K, self.k) * triton.cdiv(C, self.c) * taps


_SIZES = ((128, 256, 8), (128, 128, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4), (32, 64, 4), (64, 32, 4), (32, 32, 4), (16, 16, 4))  # fmt: skip  # noqa: E501
_SPILLS_BEFORE_3_9 = ((128, 256), (128, 64))  # one or both, as Triton 3.6, 3.7 and 3.8 compile them for sm_80
_M = 64
_MAX_SPLITS = 64


def configurations(K: int, C: int, taps: int, steps: int, dtype: torch.dtype, device: Device) -> list[Tile]:
    """Every tile that may be chosen for so many steps of pixels: pruned by waste, shared memory and registers."""
    found = []
    for k, c, warps in _SIZES:
        if k >= max(32, 2 * K) or c >= max(32, 2 * C) or (dtype == torch.float32 and k * c > 64 * 64):
            continue
        spills = (dtype == torch.float32 and k * c == 64 * 64) or (k, c) in _SPILLS_BEFORE_3_9
        if spills and device.capability < (9, 0):
            continue
        m = _M if dtype != torch.float32 else _M // 2
        stages = 4 if 4 * (k + c) * m * dtype.itemsize <= device.shared - 4096 else 3
        programs = Tile(k, c, m, warps, stages, 1).programs(K, C, taps)
        fills = [triton.cdiv(waves * device.multiprocessors, programs) for waves in (1, 2)]
        splits = {max(1, min(each, _MAX_SPLITS, steps // 4)) for each in fills}
        found += [Tile(k, c, m, warps, stages, each) for each in sorted(splits)]
    return found


def predicted_cost(tile: Tile, K: int, C: int, taps: int, steps: int, multiprocessors: int) -> float:
    """Clocks of the busiest multiprocessor, and of the pieces' sum."""
    each, pieces = pieces_of(steps, tile.splits)
    waves = triton.cdiv(tile.programs(K, C, taps) * pieces, multiprocessors)
    clocks = waves * (each * step_clocks(tile.k, tile.c, tile.m) + TILE_CLOCKS)
    return clocks + 8 * pieces * K * C * taps / (L2_BYTES * multiprocessors)


def weight_gradient(
    x: Tensor, grad_z: Tensor, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    dilation: tuple[int, int], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """[K, C, R, S] contiguous from x [N, C, H, W] and grad_z [N, K, P, Q], both with adjacent channels."""
    R, S = window
    C, K, taps = x.shape[1], grad_z.shape[1], R * S
    if grad_z.numel() == 0:
        return torch.zeros((K, C, R, S), dtype=dtype, device=x.device)
    device = device_of(x)
    joined = None
    if unsupported(x, None, K, stride) is None and unsupported(grad_z, None, K, stride) is None:
        joined = joined_views([x, grad_z], window, padding)
        if joined[0].shape[0] < _M:  # most of a step would be empty
            joined = None

    def steps(m: int) -> int:
        if joined is None:
            return int(triton.cdiv(grad_z.numel() // K, m))
        images, P, Q, _ = joined[1].shape
        return int(triton.cdiv(images, m)) * P * Q

    def run(tile: Tile) -> Tensor:
        each, pieces = pieces_of(steps(tile.m), tile.splits)
        partial = torch.empty((pieces, K, R, S, C), dtype=torch.float32, device=x.device)
        tiles_c = triton.cdiv(C, tile.c)
        grid = (triton.cdiv(K, tile.k) * tiles_c, taps, pieces)
        if joined is None:
            _by_pointers(grid, x, grad_z, partial, window, stride, padding, dilation, each, tiles_c, tile)
        else:
            pixels, gradients = joined
            _product_descriptor[grid](
                _images(gradients, tile.m, tile.k), _images(pixels, tile.m, tile.c), partial, *gradients.shape[1:3],
                K // 8, C // 8, S, taps, *padding, *dilation, tiles_c,
                triton.cdiv(gradients.shape[0], tile.m), each, BLOCK_K=tile.k, BLOCK_C=tile.c, BLOCK_M=tile.m,
                STAGES=tile.stages, num_warps=tile.warps,
            )  # fmt: skip
        return sum_of_pieces(partial, dtype)

    shape: dict[str, tuning.Value] = {
        "N": x.shape[0], "C": C, "H": x.shape[2], "W": x.shape[3], "K": K, "R": R, "S": S, "stride": str(stride),
        "padding": str(padding), "dilation": str(dilation), "joined": joined is not None, "precision": precision_of(x),
    }  # fmt: skip
    tile = tuning.choose(
        "weight_gradient", x, shape,
        lambda: configurations(K, C, taps, steps(_M), x.dtype, device),
        lambda tile: predicted_cost(tile, K, C, taps, steps(tile.m), device.multiprocessors), run,
    )  # fmt: skip
    return run(tile).permute(0, 3, 1, 2).contiguous()


def _images(t: Tensor, m: int, channels: int) -> TensorDescriptor:
    """Boxes of m images at one pixel of [N, H, W, C]; the images come third, so that the box folds to a matrix."""
    t = t.permute(1, 2, 0, 3)
    return TensorDescriptor(t, list(t.shape), list(t.stride()), [1, 1, m, channels])


def _by_pointers(
    grid: tuple[int, int, int], x: Tensor, grad_z: Tensor, partial: Tensor, window: tuple[int, int],
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], each: int, tiles_c: int, tile: Tile,
) -> None:  # fmt: skip
    _, C, H, W = x.shape
    N, K, P, Q = grad_z.shape
    x_strides, z_strides = pixel_strides(x), pixel_strides(grad_z)
    c_unit, k_unit = unit_of(C, *x_strides), unit_of(K, *z_strides)
    _product[grid](
        grad_z, x, partial, N * P * Q, H, W, C // c_unit, P, Q, K // k_unit, *(each // k_unit for each in z_strides),
        *(each // c_unit for each in x_strides), tile.m // (P * Q), tile.m // Q % P, tile.m % Q, window[1],
        window[0] * window[1], *stride, *padding, *dilation, tiles_c, each, C_UNIT=c_unit, K_UNIT=k_unit,
        PRECISION=precision_of(x), BLOCK_K=tile.k, BLOCK_C=tile.c, BLOCK_M=tile.m, num_warps=tile.warps,
        num_stages=tile.stages,
    )  # fmt: skip
