from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ._parts import activate, bias_like, bn_residual_act


def separable_conv2d(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    residual: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    depthwise_bias: Tensor | None = None,
    bias: Tensor | None = None,
    input_activation: str = "none",
    mid_activation: str = "none",
    activation: str = "none",
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """:func:`inception_kernels.separable_conv2d` in plain PyTorch, argument for argument."""
    x = activate(x, input_activation)
    mid = F.conv2d(x, depthwise_weight, bias_like(x, depthwise_bias), stride, padding, dilation, groups=x.shape[1])
    z = F.conv2d(activate(mid, mid_activation), pointwise_weight, bias_like(x, bias))
    return bn_residual_act(
        z, bn_weight, bn_bias, running_mean, running_var, residual, activation, training, momentum, eps
    )
