from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _extension, backends, reference
from ..reference._parts import bn_residual_act
from . import _checks as check
from ._aliasing import separate_memory
from ._common import autocast_dtype, cast, empty_activations, memory_format_of
from .conv2d_bn_act import conv2d_bn_act

_NAME = "pointwise_depthwise_conv2d"


def pointwise_depthwise_conv2d(
    x: Tensor,
    pointwise_weight: Tensor,
    depthwise_weight: Tensor,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    stride: check.IntOrPair = 1,
    padding: check.IntOrPair = 0,
    dilation: check.IntOrPair = 1,
    mid_activation: str = "none",
    activation: str = "none",
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``activation(BN(depthwise(mid_activation(pointwise(x)))))``: the "extreme" Inception module.

    Chollet 2017, section 1.2 and figure 4: the separable convolution in the other order. In evaluation without a
    gradient the intermediate stays in cache and never exists as a tensor. Otherwise the call is a
    :func:`conv2d_bn_act`, and the depthwise part with BN and activation on PyTorch.

    Args:
        x: ``[N, C, H, W]``, as for :func:`conv2d_bn_act`.
        pointwise_weight: ``[K, C, 1, 1]`` of x's dtype.
        depthwise_weight: ``[K, 1, R, S]`` of x's dtype.
        bn_weight, bn_bias, running_mean, running_var: ``[K]``, as for :func:`conv2d_bn_act`; after the depthwise part.
        stride, padding, dilation: of the depthwise part; integers or (height, width). Zeros pad the intermediate.
        mid_activation, activation: "none", "relu", "relu6", "elu" or "silu".
        training, momentum, eps: as for :func:`conv2d_bn_act`.

    Returns:
        ``[N, K, P, Q]`` of x's dtype in x's memory format. Empty for N = 0.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`conv2d_bn_act`.
    """
    dtype = autocast_dtype(x) if isinstance(x, Tensor) else None
    if dtype is not None:
        x = cast(x, dtype)
        pointwise_weight, depthwise_weight = cast(pointwise_weight, dtype), cast(depthwise_weight, dtype)
    check.activations(x)
    check.weight(pointwise_weight, x, ("K", x.shape[1], 1, 1), "pointwise_weight")
    channels = pointwise_weight.shape[0]
    check.weight(depthwise_weight, x, (channels, 1, "R", "S"), "depthwise_weight")
    stride, padding, dilation = (
        check.pair(stride, "stride", 1),
        check.pair(padding, "padding", 0),
        check.pair(dilation, "dilation", 1),
    )
    check.activation(mid_activation, "mid_activation")
    check.activation(activation, "activation")
    check.flag(training, "training")
    momentum, eps = check.number(momentum, "momentum"), check.epsilon(eps, training)
    bn = (bn_weight, bn_bias, running_mean, running_var)
    has_bn = check.batch_norm(*bn, channels, x, training)
    size = check.output_size(x.shape[2:], depthwise_weight.shape[2:], stride, padding, dilation)
    if has_bn and training:
        check.several_values_per_channel(x, size)
        separate_memory(
            {"running_mean": running_mean, "running_var": running_var},
            {
                "x": x, "pointwise_weight": pointwise_weight, "depthwise_weight": depthwise_weight,
                "bn_weight": bn_weight, "bn_bias": bn_bias,
            },
        )  # fmt: skip

    tensors = (x, pointwise_weight, depthwise_weight, bn_weight, bn_bias)
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if backends.choose(_NAME, x) == "reference":
        return reference.pointwise_depthwise_conv2d(
            x, pointwise_weight, depthwise_weight, *bn, stride, padding, dilation, mid_activation, activation,
            training, momentum, eps,
        )  # fmt: skip
    if (has_bn and training) or differentiated:
        mid = conv2d_bn_act(x, pointwise_weight, activation=mid_activation)
        z = F.conv2d(mid, depthwise_weight, None, stride, padding, dilation, channels)
        return bn_residual_act(z, *bn, None, activation, training, momentum, eps)
    return torch.ops.inception_kernels.pointwise_depthwise_conv2d(
        x, pointwise_weight, depthwise_weight, *bn, stride, padding, dilation, mid_activation, activation, eps
    )


def _fake(
    x, pointwise_weight, depthwise_weight, bn_weight, bn_bias, running_mean, running_var,
    stride, padding, dilation, mid_activation, activation, eps,
):  # fmt: skip
    size = check.output_size(x.shape[2:], depthwise_weight.shape[2:], stride, padding, dilation)
    return empty_activations(x, (x.shape[0], pointwise_weight.shape[0], *size), memory_format_of(x))


def _backward(ctx, grad_y):
    raise RuntimeError(
        f"torch.ops.inception_kernels.{_NAME} has no gradient; inception_kernels.{_NAME} computes it in two operators"
    )


if _extension.available:
    torch.library.register_fake(f"inception_kernels::{_NAME}", _fake)
    torch.library.register_autograd(f"inception_kernels::{_NAME}", _backward)
