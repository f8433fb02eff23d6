from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ._parts import bias_like, bn_residual_act


def conv2d_bn_act(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    activation: str = "relu",
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """:func:`inception_kernels.conv2d_bn_act` in plain PyTorch, argument for argument."""
    z = F.conv2d(x, weight, bias_like(x, bias), stride, padding, dilation)
    return bn_residual_act(
        z, bn_weight, bn_bias, running_mean, running_var, residual, activation, training, momentum, eps
    )
