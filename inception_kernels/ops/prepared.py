"""Layers prepared for inference: BN folded into a scale and a shift, weights packed for the kernels of their device.

They hold copies, made at construction and never refreshed: whoever keeps one decides when it is stale. No autograd.
The output is channels-last whatever the input's layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.asymmetric_pair import NO_BATCH_NORM, BatchNorm
from . import _checks as check

_Vector = Tensor | None
_NO_DILATION = (1, 1)


def _fold(
    dtype: torch.dtype, bn_weight: _Vector, bn_bias: _Vector, mean: _Vector, var: _Vector, bias: _Vector, eps: float
) -> tuple[_Vector, _Vector]:
    """scale and shift [K] with scale * conv + shift = BN(conv + bias), computed in float64."""
    accumulation = torch.float64 if dtype == torch.float64 else torch.float32
    shift = None if bias is None else bias.double()
    if mean is None or var is None:
        return None, None if shift is None else shift.to(accumulation).contiguous()
    scale = (var.double() + eps).rsqrt()
    if bn_weight is not None:
        scale = scale * bn_weight.double()
    shift = ((0 if shift is None else shift) - mean.double()) * scale
    if bn_bias is not None:
        shift = shift + bn_bias.double()
    return scale.to(accumulation).contiguous(), shift.to(accumulation).contiguous()


class PreparedConv2dBNAct:
    """:func:`inception_kernels.conv2d_bn_act` in evaluation with everything constant done beforehand.

    Args:
        weight, bn_weight, bn_bias, running_mean, running_var, bias, stride, padding, dilation, activation, eps:
            as :func:`inception_kernels.conv2d_bn_act`, on the CPU or a CUDA device.
    """

    @torch.no_grad()
    def __init__(
        self,
        weight: Tensor,
        bn_weight: _Vector = None,
        bn_bias: _Vector = None,
        running_mean: _Vector = None,
        running_var: _Vector = None,
        bias: _Vector = None,
        *,
        stride: check.IntOrPair = 1,
        padding: check.IntOrPair = 0,
        dilation: check.IntOrPair = 1,
        activation: str = "relu",
        eps: float = 1e-5,
    ) -> None:
        self._shape = list(weight.shape)
        self._geometry = (
            check.pair(stride, "stride", 1),
            check.pair(padding, "padding", 0),
            check.pair(dilation, "dilation", 1),
        )
        self._activation = check.activation(activation, "activation")
        self._packed = torch.ops.inception_kernels.conv2d_bn_act_pack(weight, *self._geometry)
        self._scale, self._shift = _fold(weight.dtype, bn_weight, bn_bias, running_mean, running_var, bias, eps)
        self._run = torch.ops.inception_kernels.conv2d_bn_act_prepacked.default

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x ``[N, C, H, W]`` of the weight's dtype -> ``[N, K, P, Q]``, channels-last."""
        return self._run(
            x, self._packed, self._scale, self._shift, residual, self._shape, *self._geometry, self._activation
        )


class PreparedSeparableConv2d:
    """:func:`inception_kernels.separable_conv2d` in evaluation with everything constant done beforehand.

    Args:
        depthwise_weight, pointwise_weight, bn_weight, bn_bias, running_mean, running_var, depthwise_bias, bias,
            stride, padding, dilation, input_activation, mid_activation, activation, eps: as
            :func:`inception_kernels.separable_conv2d`, on the CPU or a CUDA device.
    """

    @torch.no_grad()
    def __init__(
        self,
        depthwise_weight: Tensor,
        pointwise_weight: Tensor,
        bn_weight: _Vector = None,
        bn_bias: _Vector = None,
        running_mean: _Vector = None,
        running_var: _Vector = None,
        depthwise_bias: _Vector = None,
        bias: _Vector = None,
        *,
        stride: check.IntOrPair = 1,
        padding: check.IntOrPair = 0,
        dilation: check.IntOrPair = 1,
        input_activation: str = "none",
        mid_activation: str = "none",
        activation: str = "none",
        eps: float = 1e-5,
    ) -> None:
        channels, _, height, width = depthwise_weight.shape
        self._window = [pointwise_weight.shape[0], channels, height, width]
        self._geometry = (
            check.pair(stride, "stride", 1),
            check.pair(padding, "padding", 0),
            check.pair(dilation, "dilation", 1),
        )
        self._activations = (
            check.activation(input_activation, "input_activation"),
            check.activation(mid_activation, "mid_activation"),
            check.activation(activation, "activation"),
        )
        self._packed = torch.ops.inception_kernels.separable_conv2d_pack(
            depthwise_weight, pointwise_weight, *self._geometry
        )
        self._depthwise_bias = _fold(depthwise_weight.dtype, None, None, None, None, depthwise_bias, eps)[1]
        self._scale, self._shift = _fold(
            pointwise_weight.dtype, bn_weight, bn_bias, running_mean, running_var, bias, eps
        )
        self._run = torch.ops.inception_kernels.separable_conv2d_prepacked.default

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x ``[N, C, H, W]`` of the weights' dtype -> ``[N, K, P, Q]``, channels-last."""
        return self._run(
            x, *self._packed, self._depthwise_bias, self._scale, self._shift, residual,
            self._window, *self._geometry, *self._activations,
        )  # fmt: skip


class PreparedAsymmetricPair:
    """:func:`inception_kernels.asymmetric_pair` in evaluation with everything constant done beforehand.

    Args:
        weight1, weight2, bn1, bn2, bias1, bias2, stride1, stride2, padding1, padding2, mid_activation, activation, eps:
            as :func:`inception_kernels.asymmetric_pair`, on the CPU or a CUDA device.
    """

    @torch.no_grad()
    def __init__(
        self,
        weight1: Tensor,
        weight2: Tensor,
        bn1: BatchNorm | None = None,
        bn2: BatchNorm | None = None,
        bias1: _Vector = None,
        bias2: _Vector = None,
        stride1: check.IntOrPair = 1,
        stride2: check.IntOrPair = 1,
        padding1: check.IntOrPair = 0,
        padding2: check.IntOrPair = 0,
        *,
        mid_activation: str = "relu",
        activation: str = "relu",
        eps: float = 1e-5,
    ) -> None:
        first = check.pair(stride1, "stride1", 1), check.pair(padding1, "padding1", 0)
        second = check.pair(stride2, "stride2", 1), check.pair(padding2, "padding2", 0)
        self._parts = (
            *self._prepare(weight1, bn1, bias1, *first, eps),
            *self._prepare(weight2, bn2, bias2, *second, eps),
        )
        self._geometry = (first[0], second[0], first[1], second[1])
        self._activations = (
            check.activation(mid_activation, "mid_activation"),
            check.activation(activation, "activation"),
        )
        self._run = torch.ops.inception_kernels.asymmetric_pair_prepacked.default

    @staticmethod
    def _prepare(weight, bn, bias, stride, padding, eps):
        packed = torch.ops.inception_kernels.conv2d_bn_act_pack(weight, stride, padding, _NO_DILATION)
        scale, shift = _fold(weight.dtype, *(bn or NO_BATCH_NORM), bias, eps)
        return packed, scale, shift, list(weight.shape)

    def __call__(self, x: Tensor) -> Tensor:
        """x ``[N, C, H, W]`` of the weights' dtype -> ``[N, K, P, Q]``, channels-last."""
        return self._run(x, *self._parts, *self._geometry, *self._activations)
