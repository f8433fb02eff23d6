from __future__ import annotations

from torch import Tensor

from .conv2d_bn_act import conv2d_bn_act

BatchNorm = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
NO_BATCH_NORM: BatchNorm = (None, None, None, None)


def asymmetric_pair(
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    bn1: BatchNorm | None = None,
    bn2: BatchNorm | None = None,
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
    stride1: int | tuple[int, int] = 1,
    stride2: int | tuple[int, int] = 1,
    padding1: int | tuple[int, int] = 0,
    padding2: int | tuple[int, int] = 0,
    mid_activation: str = "relu",
    activation: str = "relu",
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """:func:`inception_kernels.asymmetric_pair` in plain PyTorch, argument for argument."""
    first, second = bn1 or NO_BATCH_NORM, bn2 or NO_BATCH_NORM
    mid = conv2d_bn_act(x, weight1, *first, bias1, None, stride1, padding1, 1, mid_activation, training, momentum, eps)
    return conv2d_bn_act(mid, weight2, *second, bias2, None, stride2, padding2, 1, activation, training, momentum, eps)
