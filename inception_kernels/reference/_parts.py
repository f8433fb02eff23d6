"""The steps that the reference operators are made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def activate(x: Tensor, activation: str) -> Tensor:
    match activation:
        case "none":
            return x
        case "relu":
            return F.relu(x)
        case "relu6":
            return F.relu6(x)
        case "elu":
            return F.elu(x)
        case "silu":
            return F.silu(x)
    raise ValueError(f"activation: expected none, relu, relu6, elu or silu, got {activation!r}")


def bias_like(x: Tensor, bias: Tensor | None) -> Tensor | None:
    """PyTorch's convolution wants its bias in the dtype of x, where the fused operators also take float32."""
    return None if bias is None else bias.to(x.dtype)


def bn_residual_act(
    z: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    activation: str,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """act(BN(z) + residual); without any batch-norm argument BN is left out."""
    if any(vector is not None for vector in (bn_weight, bn_bias, running_mean, running_var)):
        z = F.batch_norm(z, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    if residual is not None:
        z = z + residual
    return activate(z, activation)
