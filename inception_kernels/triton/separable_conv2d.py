"""separable_conv2d in Triton: one fused kernel where memory binds, depthwise + product where arithmetic does."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _depthwise, batch_norm
from ._convolution import (
    Epilogue,
    adjacent_channels,
    pixel_strides,
    precision_of,
    scale_shift,
    tile_moments,
)
from ._counters import count_kernel
from ._depthwise import Depthwise, depthwise_tile
from ._device import activate, unit_of
from ._weight_gradient import weight_gradient
from .conv2d_bn_act import Moments, input_gradient, parameter_gradient, product

_NAME = "separable_conv2d"
_MAX_FUSED = 128  # outputs of one tile: with more, the depthwise half would be computed several times
_POINT = (1, 1)
_NO_PADDING = (0, 0)
Pair = tuple[int, int]


@triton.jit
def _fused(
    x, depthwise, depthwise_bias, pointwise, y, residual, bias, gamma, beta, mean, var, partial,
    M, H, W, C, P, Q, K, x_n, x_h, x_w, r_n, r_p, r_q, eps, C_UNIT: tl.constexpr, K_UNIT: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr,
    PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, DEPTHWISE_BIAS: tl.constexpr,
    INPUT: tl.constexpr, MID: tl.constexpr, BIAS: tl.constexpr, BN: tl.constexpr, GAMMA: tl.constexpr,
    BETA: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, MOMENTS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M pixels x all K outputs; the depthwise result of a channel chunk is the product's operand."""
    C = C * C_UNIT
    K = K * K_UNIT
    x_n = x_n * C_UNIT
    x_h = x_h * C_UNIT
    x_w = x_w * C_UNIT
    tile = tl.program_id(0)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    live = m < M
    n = (m // (P * Q)).to(tl.int64)
    p = m // Q % P
    q = m % Q
    h0 = p * STRIDE_H - PAD_H
    w0 = q * STRIDE_W - PAD_W
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        u = depthwise_tile(
            x, depthwise, depthwise_bias, n, h0, w0, live, c, H, W, C, x_n, x_h, x_w, R, S, DILATION_H, DILATION_W,
            DEPTHWISE_BIAS, INPUT,
        )  # fmt: skip
        a = activate(u, MID).to(x.dtype.element_ty)
        b = tl.load(
            pointwise + k.to(tl.int64)[None, :] * C + c[:, None],
            mask=(c < C)[:, None] & (k < K)[None, :], other=0.0,
        )  # fmt: skip
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    scale, shift = scale_shift(bias, gamma, beta, mean, var, k, k < K, eps, BIAS, BN, GAMMA, BETA)
    u = acc * scale[None, :] + shift[None, :]
    inside = live[:, None] & (k < K)[None, :]
    if RESIDUAL:
        at = n * (r_n * K_UNIT) + p.to(tl.int64) * (r_p * K_UNIT) + q * (r_q * K_UNIT)
        u += tl.load(residual + at[:, None] + k[None, :], mask=inside, other=0.0).to(tl.float32)
    u = activate(u, ACTIVATION)
    if MOMENTS:
        rounded = u.to(y.dtype.element_ty).to(tl.float32)  # batch norm sees what is stored
        tile_moments(partial, rounded, tl.minimum(BLOCK_M, M - tile * BLOCK_M), tile, k, K, BLOCK_M)
    tl.store(y + m.to(tl.int64)[:, None] * K + k[None, :], u.to(y.dtype.element_ty), mask=inside)


def is_memory_bound(C: int, K: int) -> bool:
    """Whether one fused kernel is chosen: few channels, so that bytes and not products decide.

    Per pixel fusion saves 2 C stores and loads of the depthwise result; with more than one tile of outputs the
    depthwise half would be computed again for each.
    """
    return C <= 256 and K <= _MAX_FUSED


def _fused_product(
    d: Depthwise, pointwise: Tensor, epilogue: Epilogue, moments: bool
) -> tuple[Tensor, Moments | None]:  # fmt: skip
    N, C = d.x.shape[:2]
    K = pointwise.shape[0]
    y = torch.empty((N, K, *d.size), dtype=d.x.dtype, device=d.x.device, memory_format=torch.channels_last)
    rows = 64
    tiles = triton.cdiv(d.pixels, rows)
    partial = torch.empty((tiles, 2, K), dtype=torch.float32, device=y.device) if moments else None
    if d.pixels == 0:
        return y, None if partial is None else Moments(partial, rows)
    added = y if epilogue.residual is None else adjacent_channels(epilogue.residual)
    added_strides = pixel_strides(added)
    k_unit = unit_of(K, *added_strides)
    _fused[(tiles,)](
        d.x, _depthwise.taps_major(d.weight), y if d.bias is None else d.bias.contiguous(),
        pointwise.reshape(K, C).contiguous(), y,
        added, *epilogue.vectors(y), y if partial is None else partial,
        d.pixels, *d.shape()[:5], K // k_unit, *d.shape()[5:], *(stride // k_unit for stride in added_strides),
        epilogue.eps, C_UNIT=d.unit, K_UNIT=k_unit,
        **d.window(), DEPTHWISE_BIAS=d.bias is not None, INPUT=d.input_activation, MID=d.mid_activation,
        **epilogue.flags(), MOMENTS=moments, PRECISION=precision_of(d.x), BLOCK_M=rows,
        BLOCK_K=max(16, triton.next_power_of_2(K)),
        BLOCK_C=16 if C <= 16 else 32, num_warps=8 if K > 64 else 4, num_stages=1,
    )  # fmt: skip
    return y, None if partial is None else Moments(partial, rows)


def _forward(
    d: Depthwise, pointwise: Tensor, epilogue: Epilogue, moments: bool = False
) -> tuple[Tensor, Moments | None]:  # fmt: skip
    """(y channels-last, the tiles' moments or None)."""
    if is_memory_bound(d.x.shape[1], pointwise.shape[0]):
        count_kernel(f"{_NAME}.forward.triton_fused")
        return _fused_product(d, pointwise, epilogue, moments)
    count_kernel(f"{_NAME}.forward.triton_two_kernels")
    middle = _depthwise.forward(d) if d.pixels else d.x.new_empty((d.x.shape[0], d.x.shape[1], *d.size))
    return product(middle, pointwise, _POINT, _NO_PADDING, _POINT, epilogue, moments)


def separable_conv2d(
    x: Tensor, depthwise_weight: Tensor, pointwise_weight: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None,
    running_mean: Tensor | None, running_var: Tensor | None, depthwise_bias: Tensor | None, bias: Tensor | None,
    residual: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, input_activation: str, mid_activation: str,
    activation: str, eps: float,
) -> Tensor:  # fmt: skip
    """[N, K, P, Q] channels-last, with the statistics given."""
    d = _depthwise.prepare(
        x, depthwise_weight, depthwise_bias, stride, padding, dilation, input_activation, mid_activation
    )
    epilogue = Epilogue(bias, bn_weight, bn_bias, running_mean, running_var, eps, residual, activation)
    return _forward(d, pointwise_weight, epilogue)[0]


def separable_conv2d_training(
    x: Tensor, depthwise_weight: Tensor, pointwise_weight: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None,
    depthwise_bias: Tensor | None, bias: Tensor | None, residual: Tensor | None, stride: Pair, padding: Pair,
    dilation: Pair, input_activation: str, mid_activation: str, activation: str, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(y, raw pointwise output z, batch mean, biased batch variance); moments are taken in the product's epilogue."""
    d = _depthwise.prepare(
        x, depthwise_weight, depthwise_bias, stride, padding, dilation, input_activation, mid_activation
    )
    z, moments = _forward(d, pointwise_weight, Epilogue(bias=bias), moments=True)
    assert moments is not None
    mean, var = moments.statistics(z)
    bn = batch_norm.BatchNorm(bn_weight, bn_bias, mean, var, eps)
    return batch_norm.normalise(z, bn, residual, activation), z, mean, var


def separable_conv2d_backward(
    grad_y: Tensor, x: Tensor, depthwise_weight: Tensor, pointwise_weight: Tensor, bn_weight: Tensor | None,
    bn_bias: Tensor | None, mean: Tensor | None, var: Tensor | None, depthwise_bias: Tensor | None,
    bias: Tensor | None, residual: Tensor | None, z: Tensor | None, stride: Pair, padding: Pair, dilation: Pair,
    input_activation: str, mid_activation: str, activation: str, training: bool, eps: float, output_mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients in the order of the arguments; those not asked for come back empty. The middle is computed again."""
    count_kernel(f"{_NAME}.backward.triton")
    (
        wants_x,
        wants_depthwise,
        wants_pointwise,
        wants_gamma,
        wants_beta,
        wants_middle_bias,
        wants_bias,
        wants_residual,
    ) = output_mask
    d = _depthwise.prepare(
        x, depthwise_weight, depthwise_bias, stride, padding, dilation, input_activation, mid_activation
    )
    if z is None and (activation != "none" or wants_gamma or training):
        z = _forward(d, pointwise_weight, Epilogue(bias=bias))[0]
    wants_grad_middle = wants_x or wants_depthwise or wants_middle_bias
    bn = batch_norm.gradients(
        grad_y, z, batch_norm.BatchNorm(bn_weight, bn_bias, mean, var, eps), residual, activation, training,
        wants_grad_middle or wants_pointwise, wants_residual, wants_gamma or wants_beta or wants_bias,
    )  # fmt: skip
    empty = x.new_empty((0,))
    grad_x = grad_depthwise = grad_pointwise = grad_middle_bias = empty
    if bn.grad_z is not None and d.pixels == 0:
        grad_x = torch.zeros_like(x) if wants_x else empty
        grad_depthwise = torch.zeros_like(depthwise_weight) if wants_depthwise else empty
        grad_pointwise = torch.zeros_like(pointwise_weight) if wants_pointwise else empty
        grad_middle_bias = torch.zeros_like(depthwise_bias) if depthwise_bias is not None else empty
    elif bn.grad_z is not None:
        grad_middle = None
        if wants_grad_middle:
            shape = (x.shape[0], x.shape[1], *d.size)
            grad_middle = input_gradient(bn.grad_z, pointwise_weight, shape, _POINT, _NO_PADDING, _POINT)
        masks = mid_activation != "none" and grad_middle is not None
        if wants_pointwise or masks:
            middle = _depthwise.forward(d, grad_middle if masks else None)
            if wants_pointwise:
                grad_pointwise = weight_gradient(
                    middle, bn.grad_z, _POINT, _POINT, _NO_PADDING, _POINT, pointwise_weight.dtype
                )
        if grad_middle is not None:
            if wants_x:
                grad_x = _depthwise.input_gradient(d, grad_middle)
            if wants_depthwise or wants_middle_bias:
                grad_depthwise, sums = _depthwise.weight_gradient(d, grad_middle)
                grad_middle_bias = parameter_gradient(sums, depthwise_bias, wants_middle_bias)
                grad_depthwise = grad_depthwise if wants_depthwise else empty
    return (
        grad_x,
        grad_depthwise,
        grad_pointwise,
        parameter_gradient(bn.grad_gamma, bn_weight, wants_gamma),
        parameter_gradient(bn.grad_beta, bn_bias, wants_beta),
        grad_middle_bias,
        parameter_gradient(bn.grad_bias, bias, wants_bias),
        bn.grad_residual if bn.grad_residual is not None else empty,
    )
