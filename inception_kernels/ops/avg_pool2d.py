"""Average pooling on the CPU of stride 1 that keeps the image's size: its gradient is an average pool as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ._autograd import below_autograd
from ._checks import Pair
from ._common import empty_activations
from .max_pool2d import output_size


def _fake(x, kernel, stride, padding, count_include_pad):
    return empty_activations(x, (*x.shape[:2], *output_size(x.shape[2:], kernel, stride, padding)), torch.channels_last)


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Pair, count_include_pad: bool) -> Tensor:
        ctx.kernel, ctx.count_include_pad = kernel, count_include_pad
        return below_autograd(_average, x, kernel, count_include_pad)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
        if ctx.count_include_pad:
            return avg_pool2d(grad_y, ctx.kernel), None, None
        # In float32, so that 16-bit gradients are rounded once.
        wide = grad_y if grad_y.dtype == torch.float64 else grad_y.float()
        # kernel / pixels inside of each window; an average of ones that counts the padding is its reciprocal.
        ones = wide.new_ones((1, 1, *grad_y.shape[2:]))
        return avg_pool2d(wide / _average(ones, ctx.kernel, True), ctx.kernel).to(grad_y.dtype), None, None


def _average(x: Tensor, kernel: Pair, count_include_pad: bool) -> Tensor:
    padding = (kernel[0] // 2, kernel[1] // 2)
    y: Tensor = torch.ops.inception_kernels.avg_pool2d(x, kernel, (1, 1), padding, count_include_pad)
    return y


if _extension.available:
    torch.library.register_fake("inception_kernels::avg_pool2d", _fake)


def avg_pool2d(x: Tensor, kernel: Pair, count_include_pad: bool = True) -> Tensor:
    """``torch.nn.functional.avg_pool2d`` of ``[N, C, H, W]`` on the CPU with stride 1, an odd window and half of it as
    padding.

    The result has the image's size, is channels-last and has PyTorch's bits, and so is the gradient but for its bits.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _average(x, kernel, count_include_pad)
    y: Tensor = _AveragePool.apply(x, kernel, count_include_pad)
    return y
