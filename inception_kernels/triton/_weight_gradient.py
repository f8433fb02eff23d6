"""Gradient of a dense weight: per tap the product of grad_z^T [K, M] and the shifted x [M, C] over all pixels M.

The pixels are cut into slices of a fixed size; each slice's product goes to its own place, and the slices are added in
order, so that the result is the same in every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._convolution import pixel_strides, precision_of
from ._device import unit_of

_ELEMENTS = 1024  # elements a program of the final sum
_MAX_SLICES = 64


@triton.jit
def _slice_product(
    grad_z, x, partial, M, H, W, C, P, Q, K, g_n, g_p, g_q, x_n, x_h, x_w, rows, TILES_C,
    C_UNIT: tl.constexpr, K_UNIT: tl.constexpr, S: tl.constexpr, TAPS: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    C = C * C_UNIT
    K = K * K_UNIT
    tile_k = tl.program_id(0) // TILES_C
    tap = tl.program_id(1)
    piece = tl.program_id(2)
    k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    c = tl.program_id(0) % TILES_C * BLOCK_C + tl.arange(0, BLOCK_C)
    down = tap // S * DILATION_H - PAD_H
    across = tap % S * DILATION_W - PAD_W
    begin = piece * rows
    end = tl.minimum(begin + rows, M)
    acc = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for first in range(begin, end, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        live = m < end
        n = (m // (P * Q)).to(tl.int64)
        p = m // Q % P
        q = m % Q
        h = p * STRIDE_H + down
        w = q * STRIDE_W + across
        ok = live & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        a = tl.load(
            grad_z + (n * (g_n * K_UNIT) + p.to(tl.int64) * (g_p * K_UNIT) + q * (g_q * K_UNIT))[None, :] + k[:, None],
            mask=live[None, :] & (k < K)[:, None], other=0.0,
        )  # fmt: skip
        b = tl.load(
            x + (n * (x_n * C_UNIT) + h.to(tl.int64) * (x_h * C_UNIT) + w * (x_w * C_UNIT))[:, None] + c[None, :],
            mask=ok[:, None] & (c < C)[None, :], other=0.0,
        )  # fmt: skip
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    at = piece.to(tl.int64) * K * TAPS * C + (k.to(tl.int64) * TAPS + tap)[:, None] * C + c[None, :]
    tl.store(partial + at, acc, mask=(k < K)[:, None] & (c < C)[None, :])


@triton.jit
def add_slices(partial, out, total, slices, ELEMENTS: tl.constexpr):
    """out [total] = the sum over slices of partial [slices, total], in order."""
    e = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    acc = tl.zeros((ELEMENTS,), tl.float32)
    for _ in range(slices):
        acc += tl.load(partial + e, mask=e < total, other=0.0)
        partial += total
    tl.store(out + e, acc.to(out.dtype.element_ty), mask=e < total)


def sum_of_slices(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """[slices, ...] -> [...] of dtype."""
    out = torch.empty(partial.shape[1:], dtype=dtype, device=partial.device)
    total = out.numel()
    add_slices[(triton.cdiv(total, _ELEMENTS),)](partial, out, total, partial.shape[0], ELEMENTS=_ELEMENTS)
    return out


def weight_gradient(
    x: Tensor, grad_z: Tensor, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    dilation: tuple[int, int], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """[K, C, R, S] contiguous from x [N, C, H, W] and grad_z [N, K, P, Q], both with adjacent channels."""
    N, C, H, W = x.shape
    K, P, Q = grad_z.shape[1:]
    R, S = window
    M = N * P * Q
    if M == 0:
        return torch.zeros((K, C, R, S), dtype=dtype, device=x.device)
    block_k, block_c, block_m = min(64, _power(K)), min(64, _power(C)), 32
    tiles_k, tiles_c = triton.cdiv(K, block_k), triton.cdiv(C, block_c)
    wanted = max(1, min(_MAX_SLICES, 512 // (tiles_k * tiles_c * R * S), triton.cdiv(M, 8 * block_m)))
    rows = triton.cdiv(triton.cdiv(M, wanted), block_m) * block_m
    slices = triton.cdiv(M, rows)
    x_strides, z_strides = pixel_strides(x), pixel_strides(grad_z)
    c_unit, k_unit = unit_of(C, *x_strides), unit_of(K, *z_strides)
    partial = torch.empty((slices, K, R, S, C), dtype=torch.float32, device=x.device)
    _slice_product[(tiles_k * tiles_c, R * S, slices)](
        grad_z, x, partial, M, H, W, C // c_unit, P, Q, K // k_unit, *(stride // k_unit for stride in z_strides),
        *(stride // c_unit for stride in x_strides), rows, tiles_c, C_UNIT=c_unit, K_UNIT=k_unit,
        S=S, TAPS=R * S, STRIDE_H=stride[0], STRIDE_W=stride[1], PAD_H=padding[0], PAD_W=padding[1],
        DILATION_H=dilation[0], DILATION_W=dilation[1], PRECISION=precision_of(x),
        BLOCK_K=block_k, BLOCK_C=block_c, BLOCK_M=block_m,
    )  # fmt: skip
    return sum_of_slices(partial, dtype).permute(0, 3, 1, 2).contiguous()


def _power(n: int) -> int:
    return max(16, triton.next_power_of_2(n))
