"""separable_conv2d in Triton: one kernel of patches where memory binds, depthwise + product where arithmetic does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from . import _depthwise, _separable_patches, batch_norm, tuning
from ._convolution import adjacent_channels
from ._counters import count_kernel
from ._depthwise import Depthwise
from ._epilogue import Epilogue, Moments
from ._roofline import Work, seconds
from ._separable_patches import Patches
from ._weight_gradient import weight_gradient
from .conv2d_bn_act import Pair, input_gradient, parameter_gradient, product
from .runtime import Device, device_of

_NAME = "separable_conv2d"
_POINT = (1, 1)
_NO_PADDING = (0, 0)


@dataclass(frozen=True)
class TwoKernels:
    """The depthwise result goes through memory: no pixel's is computed for more than one tile."""

    warps: int = 0  # those of the two kernels, which are chosen on their own


_DEPTHWISE_INSTRUCTIONS = 0.65  # of a warp, per pixel and channel, counted in the compiled rolled-row kernel
_PRODUCT_TILE = 128  # pixels, and outputs, of the product's usual tile


def _seconds(algorithm: Patches | TwoKernels, d: Depthwise, K: int, residual: bool, device: Device) -> float:
    """Predicted from counts."""
    if isinstance(algorithm, Patches):
        return seconds(_separable_patches.work(algorithm, d, K, residual), device)
    N, C, H, W = d.x.shape
    size = d.x.element_size()
    depthwise = Work(
        size * (N * H * W + d.pixels) * C, 0, d.pixels * C * _DEPTHWISE_INSTRUCTIONS, triton.cdiv(d.pixels * C, 2048)
    )
    product = Work(
        size * d.pixels * (C + K * (2 if residual else 1)), d.pixels * C * K, 0,
        triton.cdiv(d.pixels, _PRODUCT_TILE) * triton.cdiv(K, _PRODUCT_TILE),
    )  # fmt: skip
    return seconds(depthwise, device) + seconds(product, device)


def _forward(
    d: Depthwise, pointwise: Tensor, epilogue: Epilogue, moments: bool = False
) -> tuple[Tensor, Moments | None]:  # fmt: skip
    """(y channels-last, the tiles' moments or None)."""
    N, C, H, W = d.x.shape
    K = pointwise.shape[0]
    y = torch.empty((N, K, *d.size), dtype=d.x.dtype, device=d.x.device, memory_format=torch.channels_last)
    if d.pixels == 0:
        count_kernel(f"{_NAME}.forward.triton_two_kernels")
        return y, Moments.of(0, K, y.device) if moments else None
    if epilogue.residual is not None:
        epilogue = replace(epilogue, residual=adjacent_channels(epilogue.residual))
    weight = pointwise.reshape(K, C).contiguous()
    device, residual = device_of(y), epilogue.residual is not None

    def run(algorithm: Patches | TwoKernels) -> tuple[Tensor, Moments | None]:
        if isinstance(algorithm, Patches):
            return y, _separable_patches.separable(d, weight, epilogue, moments, algorithm, y)
        return product(_depthwise.forward(d)[0], pointwise, _POINT, _NO_PADDING, _POINT, epilogue, moments)

    shape: dict[str, tuning.Value] = {
        "N": N, "H": H, "W": W, "C": C, "K": K, "window": str(tuple(d.weight.shape[2:])), "stride": str(d.stride),
        "padding": str(d.padding), "dilation": str(d.dilation), "unit": d.unit, "input": d.input_activation,
        "mid": d.mid_activation, "residual": residual, "moments": moments,
    }  # fmt: skip

    def candidates() -> list[Patches | TwoKernels]:
        return [*_separable_patches.configurations(C, K, d, moments), TwoKernels()]

    algorithm = tuning.choose(
        _NAME, y, shape, candidates,
        lambda algorithm: _seconds(algorithm, d, K, residual, device), lambda algorithm: run(algorithm)[0],
    )  # fmt: skip
    count_kernel(f"{_NAME}.forward.triton_{'fused' if isinstance(algorithm, Patches) else 'two_kernels'}")
    return run(algorithm)


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
    mean, var = batch_norm.statistics(moments, z)
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
            middle, masked = _depthwise.forward(d, grad_middle if masks else None)
            grad_middle = grad_middle if masked is None else masked
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
