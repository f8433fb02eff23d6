from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ._parts import activate, bn_residual_act


def pointwise_depthwise_conv2d(
    x: Tensor,
    pointwise_weight: Tensor,
    depthwise_weight: Tensor,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mid_activation: str = "none",
    activation: str = "none",
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """:func:`inception_kernels.pointwise_depthwise_conv2d` in plain PyTorch, argument for argument."""
    mid = activate(F.conv2d(x, pointwise_weight), mid_activation)
    z = F.conv2d(mid, depthwise_weight, None, stride, padding, dilation, groups=mid.shape[1])
    return bn_residual_act(z, bn_weight, bn_bias, running_mean, running_var, None, activation, training, momentum, eps)
