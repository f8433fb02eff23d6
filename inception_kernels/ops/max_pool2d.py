"""Max pooling on the CPU, which in training steps keeps one byte per output instead of an int64 index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ._autograd import below_autograd, gradient_operator
from ._checks import Pair
from ._common import empty_activations, refuse_double_backward

_NAME = "inception_kernels::max_pool2d"


def output_size(size: Sequence[int], kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    """(P, Q) of a pool over (H, W)."""
    P, Q = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True))
    return P, Q


def _fake(x, kernel, stride, padding):
    return empty_activations(x, (*x.shape[:2], *output_size(x.shape[2:], kernel, stride, padding)), torch.channels_last)


def _fake_training(x, kernel, stride, padding):
    y = _fake(x, kernel, stride, padding)
    return y, empty_activations(x, y.shape, torch.channels_last, torch.uint8)


def _fake_backward(grad_y, taps, H, W, kernel, stride, padding):
    return empty_activations(grad_y, (*grad_y.shape[:2], H, W), torch.channels_last)


def _save(ctx, inputs, output):
    x, *ctx.options = inputs
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)  # of the taps: a tensor of zeros
    ctx.size = x.shape[2:]


def _setup(ctx, inputs, output):
    _save(ctx, inputs, output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad_y, *_):
    if grad_y is None:
        return None, None, None, None
    operator = torch.ops.inception_kernels.max_pool2d_backward
    return gradient_operator(operator, grad_y, *ctx.saved_tensors, *ctx.size, *ctx.options), None, None, None


if _extension.available:
    torch.library.register_fake(_NAME, _fake)
    torch.library.register_fake(f"{_NAME}_training", _fake_training)
    torch.library.register_fake(f"{_NAME}_backward", _fake_backward)
    torch.library.register_autograd(f"{_NAME}_training", _backward, setup_context=_setup)
    torch.library.register_autograd(f"{_NAME}_backward", refuse_double_backward("max_pool2d"))


class _MaxPool(torch.autograd.Function):
    """Without the generic wrapper of register_autograd, as `TrainingCall`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = below_autograd(torch.ops.inception_kernels.max_pool2d_training, *inputs)
        _save(ctx, inputs, output)
        y: Tensor = output[0]
        return y

    backward = staticmethod(_backward)


def max_pool2d(x: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """``torch.nn.functional.max_pool2d`` of ``[N, C, H, W]`` on the CPU, to ``[N, C, P, Q]`` in channels-last.

    Windows have at most 256 pixels where a gradient is wanted, and padding at most half of them. The results are
    PyTorch's (of zeros of both signs either one, where no gradient is wanted); gradients are gathered, so that each is
    added in float32 (float64 for float64) and rounded once.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return torch.ops.inception_kernels.max_pool2d(x, kernel, stride, padding)
    y: Tensor = _MaxPool.apply(x, kernel, stride, padding)
    return y
