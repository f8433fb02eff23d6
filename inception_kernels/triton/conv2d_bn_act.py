"""conv2d_bn_act in Triton: forward, training forward, and gradients, all as implicit products over NHWC pixels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..ops._common import memory_format_of
from . import batch_norm
from ._convolution import adjacent_channels, convolve, forward_taps, gradient_taps
from ._convolution_descriptor import convolve_boxes, unsupported
from ._counters import count_kernel
from ._epilogue import Epilogue, Moments
from ._weight_gradient import weight_gradient

_NAME = "conv2d_bn_act"
Pair = tuple[int, int]


def output_size(size: Pair, window: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """(P, Q) of (H, W)."""
    P, Q = ((size[d] + 2 * padding[d] - dilation[d] * (window[d] - 1) - 1) // stride[d] + 1 for d in range(2))
    return P, Q


def taps_major(weight: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """[K, C, R, S] with adjacent channels, and its strides by (K, tap, C)."""
    _, C, R, S = weight.shape
    packed = weight.permute(0, 2, 3, 1).contiguous()
    return packed, (R * S * C, C, 1)


def product(
    x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, epilogue: Epilogue, moments: bool = False
) -> tuple[Tensor, Moments | None]:
    """(y channels-last, the tiles' moments or None); by tensor descriptors where they can, by pointers elsewhere."""
    N, C = x.shape[:2]
    K, _, R, S = weight.shape
    P, Q = output_size((x.shape[2], x.shape[3]), (R, S), stride, padding, dilation)
    x = adjacent_channels(x)
    y = torch.empty((N, K, P, Q), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if epilogue.residual is not None:
        epilogue = replace(epilogue, residual=adjacent_channels(epilogue.residual))
    if y.numel() and unsupported(x, epilogue.residual, K, stride) is None:
        by_tap = weight.permute(2, 3, 0, 1).reshape(R * S, K, C).contiguous()
        return y, convolve_boxes(x, by_tap, y, (R, S), padding, dilation, epilogue, moments)
    if not y.numel():
        return y, Moments.of(0, K, x.device) if moments else None
    packed, strides = taps_major(weight)
    window = (
        forward_taps(R, stride[0], padding[0], dilation[0]),
        forward_taps(S, stride[1], padding[1], dilation[1]),
    )
    return y, convolve(x, packed, strides, y, window, epilogue, S, moments)


def conv2d_bn_act(
    x: Tensor, weight: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, bias: Tensor | None, residual: Tensor | None, stride: Pair, padding: Pair,
    dilation: Pair, activation: str, eps: float,
) -> Tensor:  # fmt: skip
    """[N, K, P, Q] channels-last: act(BN(conv(x) + bias) + residual) with the statistics given."""
    epilogue = Epilogue(bias, bn_weight, bn_bias, running_mean, running_var, eps, residual, activation)
    count_kernel(f"{_NAME}.forward.triton")
    return product(x, weight, stride, padding, dilation, epilogue)[0]


def conv2d_bn_act_training(
    x: Tensor, weight: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, bias: Tensor | None,
    residual: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, activation: str, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(y, raw convolution z, batch mean, biased batch variance); moments are taken in the product's epilogue."""
    count_kernel(f"{_NAME}.forward.triton_training")
    z, moments = product(x, weight, stride, padding, dilation, Epilogue(bias=bias), moments=True)
    assert moments is not None
    mean, var = batch_norm.statistics(moments, z)
    bn = batch_norm.BatchNorm(bn_weight, bn_bias, mean, var, eps)
    return batch_norm.normalise(z, bn, residual, activation), z, mean, var


def input_gradient(
    grad_z: Tensor, weight: Tensor, shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:  # fmt: skip
    """Gradient, of this shape [N, C, H, W] and channels-last, of the input: one product per residue class of pixels."""
    _, _, H, W = shape
    R, S = weight.shape[2:]
    grad_x = torch.empty(shape, dtype=grad_z.dtype, device=grad_z.device, memory_format=torch.channels_last)
    packed, (by_k, by_tap, by_c) = taps_major(weight)
    grad_z = adjacent_channels(grad_z)
    turned = (dilation[0] * (R - 1) - padding[0], dilation[1] * (S - 1) - padding[1])
    if grad_x.numel() and grad_z.numel() and unsupported(grad_z, None, shape[1], stride) is None:
        # With stride 1 the gradient is a convolution with the window turned round.
        turned_weight = weight.flip(2, 3).permute(2, 3, 1, 0).reshape(R * S, shape[1], weight.shape[0]).contiguous()
        convolve_boxes(grad_z, turned_weight, grad_x, (R, S), turned, dilation, Epilogue(), moments=False)
        return grad_x
    if not grad_x.numel():
        return grad_x
    for a in range(min(stride[0], H)):
        for b in range(min(stride[1], W)):
            window = (
                gradient_taps(R, stride[0], padding[0], dilation[0], a),
                gradient_taps(S, stride[1], padding[1], dilation[1], b),
            )
            pixels = grad_x[:, :, a :: stride[0], b :: stride[1]]
            if all(taps.count for taps in window):
                convolve(grad_z, packed, (by_c, by_tap, by_k), pixels, window, Epilogue(), S)
            else:  # no output reads these
                pixels.zero_()
    return grad_x


def conv2d_bn_act_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, mean: Tensor | None,
    var: Tensor | None, bias: Tensor | None, residual: Tensor | None, z: Tensor | None, stride: Pair, padding: Pair,
    dilation: Pair, activation: str, training: bool, eps: float, output_mask: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, weight, bn_weight, bn_bias, bias, residual; those not asked for come back empty."""
    count_kernel(f"{_NAME}.backward.triton")
    wants_x, wants_weight, wants_gamma, wants_beta, wants_bias, wants_residual = output_mask
    if z is None and (activation != "none" or wants_gamma or training):
        z = product(x, weight, stride, padding, dilation, Epilogue(bias=bias))[0]
    needs_z = wants_x or wants_weight
    bn = batch_norm.gradients(
        grad_y, z, batch_norm.BatchNorm(bn_weight, bn_bias, mean, var, eps), residual, activation, training,
        needs_z, wants_residual, wants_gamma or wants_beta or wants_bias,
    )  # fmt: skip
    empty = x.new_empty((0,))
    grad_x = grad_weight = empty
    if bn.grad_z is not None:
        if wants_x:
            grad_x = input_gradient(bn.grad_z, weight, tuple(x.shape), stride, padding, dilation)
        if wants_weight:
            grad_weight = weight_gradient(
                adjacent_channels(x),
                bn.grad_z,
                (weight.shape[2], weight.shape[3]),
                stride,
                padding,
                dilation,
                weight.dtype,
            ).contiguous(memory_format=memory_format_of(weight))
    return (
        grad_x,
        grad_weight,
        parameter_gradient(bn.grad_gamma, bn_weight, wants_gamma),
        parameter_gradient(bn.grad_beta, bn_bias, wants_beta),
        parameter_gradient(bn.grad_bias, bias, wants_bias),
        bn.grad_residual if bn.grad_residual is not None else empty,
    )


def parameter_gradient(gradient: Tensor | None, parameter: Tensor | None, wanted: bool) -> Tensor:
    if parameter is None or gradient is None or not wanted:
        like = parameter if parameter is not None else torch.empty(0)
        return like.new_empty((0,))
    return gradient.to(parameter.dtype)
