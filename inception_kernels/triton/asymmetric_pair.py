"""asymmetric_pair in Triton: two products. The intermediate is a tensor, which at these sizes stays in L2."""

from __future__ import annotations

from torch import Tensor

from ._counters import count_kernel
from ._epilogue import Epilogue
from .conv2d_bn_act import Pair, product

_NAME = "asymmetric_pair"
_NO_DILATION = (1, 1)


def asymmetric_pair(
    x: Tensor, weight1: Tensor, bn_weight1: Tensor | None, bn_bias1: Tensor | None, running_mean1: Tensor | None,
    running_var1: Tensor | None, bias1: Tensor | None, weight2: Tensor, bn_weight2: Tensor | None,
    bn_bias2: Tensor | None, running_mean2: Tensor | None, running_var2: Tensor | None, bias2: Tensor | None,
    stride1: Pair, stride2: Pair, padding1: Pair, padding2: Pair, mid_activation: str, activation: str, eps: float,
) -> Tensor:  # fmt: skip
    """[N, K, P, Q] channels-last, with the statistics given."""
    count_kernel(f"{_NAME}.forward.triton_two_kernels")
    first = Epilogue(bias1, bn_weight1, bn_bias1, running_mean1, running_var1, eps, None, mid_activation)
    second = Epilogue(bias2, bn_weight2, bn_bias2, running_mean2, running_var2, eps, None, activation)
    middle = product(x, weight1, stride1, padding1, _NO_DILATION, first)[0]
    return product(middle, weight2, stride2, padding2, _NO_DILATION, second)[0]
