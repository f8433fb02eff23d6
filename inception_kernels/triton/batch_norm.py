"""The training half of every operator in Triton: batch statistics, normalise + activation, and their gradient.

Activations are [M, K] matrices of M = N P Q pixels here, rows ``stride`` elements apart. Sums over pixels are taken in
two stages in a fixed order: one program per (slice of pixels, block of channels), then one per block of channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._device import activate, activation_gradient, in_elements, load_vector, merge_moments, unit_of
from ._epilogue import Moments

_CHANNELS = 64  # channels a program
_PIXELS = 32  # pixels a step
_MAX_SLICES = 512
_TILES_TOGETHER = 64  # tiles whose moments one program merges: a large batch has tens of thousands


@triton.jit(do_not_specialize=["K", "TILES", "TOGETHER"])
def _merge(partial, counts, merged, merged_counts, K, TILES, TOGETHER, LAST: tl.constexpr, CHANNELS: tl.constexpr):
    """merged [., 2, K], of each TOGETHER tiles of partial [TILES, 2, K], and how many pixels each has, merged_counts.

    LAST: instead of these the mean [K] and the variance [K] of all.
    """
    k = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = k < K
    first = tl.program_id(1) * TOGETHER
    stride = 2 * K.to(tl.int64)
    mean = tl.zeros((CHANNELS,), tl.float32)
    m2 = tl.zeros((CHANNELS,), tl.float32)
    count = tl.zeros((CHANNELS,), tl.float32)
    for i in range(first, tl.minimum(first + TOGETHER, TILES)):
        tile = partial + i * stride
        tile_mean = tl.load(tile + k, mask=inside, other=0.0)
        tile_m2 = tl.load(tile + K + k, mask=inside, other=0.0)
        here = tl.zeros((CHANNELS,), tl.float32) + tl.load(counts + i)
        mean, m2, count = merge_moments(mean, m2, count, tile_mean, tile_m2, here)
    if LAST:
        tl.store(merged + k, mean, mask=inside)
        tl.store(merged_counts + k, m2 / count, mask=inside)
    else:
        out = merged + tl.program_id(1) * stride
        tl.store(out + k, mean, mask=inside)
        tl.store(out + K + k, m2, mask=inside)
        tl.store(merged_counts + tl.program_id(1), tl.max(count, axis=0), mask=tl.program_id(0) == 0)


@triton.jit
def _block(first, end, channel_block, K, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Pixels from `first` to before `end`, channels, and which of the block are both [PIXELS, CHANNELS]."""
    m = first + tl.arange(0, PIXELS)
    k = channel_block * CHANNELS + tl.arange(0, CHANNELS)
    return m, k, (m < end)[:, None] & (k < K)[None, :]


@triton.jit(do_not_specialize=["M", "K", "z_stride", "residual_stride", "y_stride"])
def _normalise(
    z, mean, var, gamma, beta, residual, y, M, K, z_stride, residual_stride, y_stride, eps, UNIT: tl.constexpr,
    BN: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    K, z_stride, residual_stride, y_stride = in_elements(K, z_stride, residual_stride, y_stride, UNIT)
    m, k, inside = _block(tl.program_id(0).to(tl.int64) * PIXELS, M, tl.program_id(1), K, PIXELS, CHANNELS)
    u = tl.load(z + m[:, None] * z_stride + k[None, :], mask=inside, other=0.0).to(tl.float32)
    if BN:
        scale = load_vector(gamma, k, k < K, GAMMA, 1.0) / tl.sqrt(tl.load(var + k, mask=k < K, other=1.0) + eps)
        u = (u - tl.load(mean + k, mask=k < K, other=0.0)[None, :]) * scale[None, :]
        u += load_vector(beta, k, k < K, BETA, 0.0)[None, :]
    if RESIDUAL:
        u += tl.load(residual + m[:, None] * residual_stride + k[None, :], mask=inside, other=0.0).to(tl.float32)
    u = activate(u, ACTIVATION)
    tl.store(y + m[:, None] * y_stride + k[None, :], u.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _grad_u(
    grad_y, z, residual, mean, var, gamma, beta, m, k, inside, K, grad_stride, z_stride, residual_stride, eps,
    BN: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """(gradient of the activation's input, normalised z); the latter 0 where nothing asks for it."""
    m = m.to(tl.int64)
    grad = tl.load(grad_y + m[:, None] * grad_stride + k[None, :], mask=inside, other=0.0).to(tl.float32)
    normalised = tl.zeros_like(grad)
    if BN or ACTIVATION != "none":
        normalised = tl.load(z + m[:, None] * z_stride + k[None, :], mask=inside, other=0.0).to(tl.float32)
    u = normalised
    if BN:
        rstd = 1.0 / tl.sqrt(tl.load(var + k, mask=k < K, other=1.0).to(tl.float32) + eps)
        normalised = (normalised - load_vector(mean, k, k < K, True, 0.0)[None, :]) * rstd[None, :]
        u = normalised * load_vector(gamma, k, k < K, GAMMA, 1.0)[None, :]
        u += load_vector(beta, k, k < K, BETA, 0.0)[None, :]
    if ACTIVATION != "none":
        if RESIDUAL:
            u += tl.load(residual + m[:, None] * residual_stride + k[None, :], mask=inside, other=0.0).to(tl.float32)
        grad = activation_gradient(grad, u, ACTIVATION)
    return tl.where(inside, grad, 0.0), normalised


@triton.jit(do_not_specialize=["M", "K", "grad_stride", "z_stride", "residual_stride", "rows"])
def _slice_sums(
    grad_y, z, residual, mean, var, gamma, beta, partial, M, K, grad_stride, z_stride, residual_stride, rows, eps,
    UNIT: tl.constexpr, BN: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr, RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Per slice of pixels: the sums of grad_u and of grad_u times normalised z."""
    K, grad_stride, z_stride, residual_stride = in_elements(K, grad_stride, z_stride, residual_stride, UNIT)
    k = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    begin = tl.program_id(1) * rows
    end = tl.minimum(begin + rows, M)
    plain = tl.zeros((PIXELS, CHANNELS), tl.float32)
    weighted = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for first in range(begin, end, PIXELS):
        m, _, inside = _block(first, end, tl.program_id(0), K, PIXELS, CHANNELS)
        grad, normalised = _grad_u(
            grad_y, z, residual, mean, var, gamma, beta, m, k, inside, K, grad_stride, z_stride, residual_stride, eps,
            BN, GAMMA, BETA, RESIDUAL, ACTIVATION,
        )  # fmt: skip
        plain += grad
        weighted += grad * normalised
    tl.store(partial + 2 * tl.program_id(1) * K + k, tl.sum(plain, axis=0), mask=k < K)
    tl.store(partial + (2 * tl.program_id(1) + 1) * K + k, tl.sum(weighted, axis=0), mask=k < K)


@triton.jit(do_not_specialize=["K", "SLICES"])
def _combine_sums(partial, sums, K, SLICES, CHANNELS: tl.constexpr):
    """sums [2, K]: of grad_u (the gradient of beta) and of grad_u times normalised z (the gradient of gamma)."""
    k = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    plain = tl.zeros((CHANNELS,), tl.float32)
    weighted = tl.zeros((CHANNELS,), tl.float32)
    for i in range(SLICES):
        plain += tl.load(partial + 2 * i * K + k, mask=k < K, other=0.0)
        weighted += tl.load(partial + (2 * i + 1) * K + k, mask=k < K, other=0.0)
    tl.store(sums + k, plain, mask=k < K)
    tl.store(sums + K + k, weighted, mask=k < K)


@triton.jit(do_not_specialize=["M", "K", "grad_stride", "z_stride", "residual_stride"])
def _input_gradient(
    grad_y, z, residual, mean, var, gamma, beta, sums, grad_z, grad_residual, M, K, grad_stride, z_stride,
    residual_stride, eps, UNIT: tl.constexpr, BN: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr,
    RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, TRAINING: tl.constexpr, GRAD_Z: tl.constexpr,
    GRAD_RESIDUAL: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    K, grad_stride, z_stride, residual_stride = in_elements(K, grad_stride, z_stride, residual_stride, UNIT)
    m, k, inside = _block(tl.program_id(0).to(tl.int64) * PIXELS, M, tl.program_id(1), K, PIXELS, CHANNELS)
    grad, normalised = _grad_u(
        grad_y, z, residual, mean, var, gamma, beta, m, k, inside, K, grad_stride, z_stride, residual_stride, eps,
        BN, GAMMA, BETA, RESIDUAL, ACTIVATION,
    )  # fmt: skip
    if GRAD_RESIDUAL:
        tl.store(grad_residual + m[:, None] * K + k[None, :], grad.to(grad_residual.dtype.element_ty), mask=inside)
    if GRAD_Z:
        if BN:
            rstd = 1.0 / tl.sqrt(tl.load(var + k, mask=k < K, other=1.0).to(tl.float32) + eps)
            if TRAINING:
                mean_grad = tl.load(sums + k, mask=k < K, other=0.0) / M
                mean_weighted = tl.load(sums + K + k, mask=k < K, other=0.0) / M
                grad = grad - mean_grad[None, :] - normalised * mean_weighted[None, :]
            grad = grad * (rstd * load_vector(gamma, k, k < K, GAMMA, 1.0))[None, :]
        tl.store(grad_z + m[:, None] * K + k[None, :], grad.to(grad_z.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class BatchNorm:
    """gamma and beta [K] or None; mean and var [K]; all None where there is no batch norm."""

    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float

    @property
    def given(self) -> bool:
        return self.mean is not None

    def flags(self) -> dict[str, bool]:
        return {"BN": self.given, "GAMMA": self.gamma is not None, "BETA": self.beta is not None}


@dataclass(frozen=True)
class Gradients:
    """grad_z and grad_residual are [N, K, P, Q] channels-last, the sums [K] float32; None where not asked for."""

    grad_z: Tensor | None
    grad_residual: Tensor | None
    grad_gamma: Tensor | None
    grad_beta: Tensor | None
    grad_bias: Tensor | None


def slices(M: int, K: int) -> tuple[int, int]:
    """(pixels a slice, slices): enough programs to fill a device, slices of a size that depends on the shape alone."""
    wanted = max(1, min(_MAX_SLICES, triton.cdiv(M, 4 * _PIXELS), 4096 // triton.cdiv(K, _CHANNELS)))
    rows = triton.cdiv(triton.cdiv(M, wanted), _PIXELS) * _PIXELS
    return rows, triton.cdiv(M, rows)


def pixel_rows(t: Tensor) -> Tensor:
    """[N, K, P, Q] as [M, K] rows of adjacent channels with one stride; a copy where the layout has none."""
    t = t.permute(0, 2, 3, 1)
    N, P, Q, K = t.shape
    if t.stride(3) == 1 or K == 1:
        try:
            return t.view(N * P * Q, K)
        except RuntimeError:
            pass
    return t.reshape(N * P * Q, K).contiguous()


def channels_last_like(t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(t.shape, dtype=dtype or t.dtype, device=t.device, memory_format=torch.channels_last)


def statistics(moments: Moments, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [K] float32 of z [N, K, P, Q], whose tiles have these moments; 0 where it is empty."""
    K = z.shape[1]
    if z.numel() == 0:
        return moments.partial.new_zeros(K), moments.partial.new_zeros(K)
    mean, var = moments.partial.new_empty(K), moments.partial.new_empty(K)
    blocks = triton.cdiv(K, _CHANNELS)
    while (tiles := moments.counts.numel()) > _TILES_TOGETHER:
        merged = Moments.of(triton.cdiv(tiles, _TILES_TOGETHER), K, z.device)
        _merge[(blocks, merged.counts.numel())](
            *moments, *merged, K, tiles, _TILES_TOGETHER, LAST=False, CHANNELS=_CHANNELS
        )
        moments = merged
    _merge[(blocks, 1)](*moments, mean, var, K, tiles, _TILES_TOGETHER, LAST=True, CHANNELS=_CHANNELS)
    return mean, var


def normalise(z: Tensor, bn: BatchNorm, residual: Tensor | None, activation: str) -> Tensor:
    """act(BN(z) + residual), channels-last."""
    y = channels_last_like(z)
    flat, out = pixel_rows(z), pixel_rows(y)
    added = flat if residual is None else pixel_rows(residual)
    M, K = flat.shape
    if M == 0:
        return y
    anything = flat
    strides = (flat.stride(0), added.stride(0), out.stride(0))
    unit = unit_of(K, *strides)
    _normalise[(triton.cdiv(M, _PIXELS), triton.cdiv(K, _CHANNELS))](
        flat, _or(bn.mean, anything), _or(bn.var, anything), _or(bn.gamma, anything), _or(bn.beta, anything), added,
        out, M, K // unit, *(stride // unit for stride in strides), bn.eps, UNIT=unit, **bn.flags(),
        RESIDUAL=residual is not None, ACTIVATION=activation, PIXELS=_PIXELS, CHANNELS=_CHANNELS,
    )  # fmt: skip
    return y


def gradients(
    grad_y: Tensor, z: Tensor | None, bn: BatchNorm, residual: Tensor | None, activation: str, training: bool,
    needs_grad_z: bool, needs_grad_residual: bool, needs_sums: bool,
) -> Gradients:  # fmt: skip
    """Of y = act(BN(z) + residual); z is the raw convolution and may be None where nothing depends on it."""
    flat_grad = pixel_rows(grad_y)
    flat_z = flat_grad if z is None else pixel_rows(z)
    added = flat_grad if residual is None else pixel_rows(residual)
    M, K = flat_grad.shape
    vectors = tuple(_or(v, flat_grad) for v in (bn.mean, bn.var, bn.gamma, bn.beta))
    strides = (flat_grad.stride(0), flat_z.stride(0), added.stride(0))
    unit = unit_of(K, *strides)
    strides = (strides[0] // unit, strides[1] // unit, strides[2] // unit)
    flags = {**bn.flags(), "UNIT": unit, "RESIDUAL": residual is not None, "ACTIVATION": activation}
    blocks = {"PIXELS": _PIXELS, "CHANNELS": _CHANNELS}
    sums = torch.zeros((2, K), dtype=torch.float32, device=grad_y.device)
    if M and (needs_sums or (training and bn.given and needs_grad_z)):
        rows, count = slices(M, K)
        partial = torch.empty((count, 2, K), dtype=torch.float32, device=grad_y.device)
        _slice_sums[(triton.cdiv(K, _CHANNELS), count)](
            flat_grad, flat_z, added, *vectors, partial, M, K // unit, *strides, rows, bn.eps, **flags, **blocks
        )
        _combine_sums[(triton.cdiv(K, _CHANNELS),)](partial, sums, K, count, CHANNELS=_CHANNELS)
    grad_z = channels_last_like(grad_y) if needs_grad_z else None
    grad_residual = channels_last_like(grad_y) if needs_grad_residual else None
    if M and (needs_grad_z or needs_grad_residual):
        _input_gradient[(triton.cdiv(M, _PIXELS), triton.cdiv(K, _CHANNELS))](
            flat_grad, flat_z, added, *vectors, sums, _or(grad_z, flat_grad), _or(grad_residual, flat_grad), M,
            K // unit, *strides, bn.eps, **flags, TRAINING=training and bn.given, GRAD_Z=needs_grad_z,
            GRAD_RESIDUAL=needs_grad_residual, **blocks,
        )  # fmt: skip
    grad_bias = None
    if needs_sums:
        grad_bias = _bias_gradient(sums[0], bn, training)
    return Gradients(grad_z, grad_residual, sums[1] if needs_sums else None, sums[0] if needs_sums else None, grad_bias)


def _bias_gradient(grad_beta: Tensor, bn: BatchNorm, training: bool) -> Tensor:
    """The sum of grad_z. Batch statistics take the mean away, and with it everything that a bias could add."""
    if not bn.given:
        return grad_beta
    if training:
        return torch.zeros_like(grad_beta)
    assert bn.var is not None
    scale = (bn.var.float() + bn.eps).rsqrt()
    return grad_beta * scale if bn.gamma is None else grad_beta * scale * bn.gamma.float()


def _or(t: Tensor | None, otherwise: Tensor) -> Tensor:
    """A pointer for an argument that the kernel will not read."""
    return otherwise if t is None else t if t.dim() != 1 else t.contiguous()
