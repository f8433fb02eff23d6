"""Average pooling of stride 1 that keeps the image's size: its gradient is an average pool as well.

PyTorch's own gradient of channels-last tensors works on as many threads as there are images; its forward pass, which
computes the gradient here, on as many as there are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import Pair


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Pair, count_include_pad: bool) -> Tensor:
        ctx.kernel, ctx.count_include_pad = kernel, count_include_pad
        return _average(x, kernel, count_include_pad)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
        grad_y = grad_y.contiguous(memory_format=torch.channels_last)
        if ctx.count_include_pad:
            return _average(grad_y, ctx.kernel, True), None, None
        # In float32, so that 16-bit gradients are rounded once.
        wide = grad_y if grad_y.dtype == torch.float64 else grad_y.float()
        # kernel / pixels inside of each window; an average of ones that counts the padding is its reciprocal.
        ones = wide.new_ones((1, 1, *grad_y.shape[2:]))
        return _average(wide / _average(ones, ctx.kernel, True), ctx.kernel, True).to(grad_y.dtype), None, None


def _average(x: Tensor, kernel: Pair, count_include_pad: bool) -> Tensor:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return F.avg_pool2d(x, kernel, 1, padding, count_include_pad=count_include_pad)


def avg_pool2d(x: Tensor, kernel: Pair, count_include_pad: bool = True) -> Tensor:
    """``torch.nn.functional.avg_pool2d`` of ``[N, C, H, W]`` with stride 1, an odd window and half of it as padding.

    The result has the image's size and PyTorch's bits. The gradient is channels-last.
    """
    y: Tensor = _AveragePool.apply(x, kernel, count_include_pad)
    return y
