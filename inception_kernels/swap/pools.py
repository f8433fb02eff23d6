"""Pools of a model that has fused layers: on the CPU they run this package's operators.

A pool decides at each call, from its settings as they are then, whether an operator does exactly what PyTorch does;
other devices and layouts, `torch.compile` and function transforms stay PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import _extension, backends
from ..ops._checks import DTYPES, Pair
from ..ops.avg_pool2d import avg_pool2d
from ..ops.max_pool2d import max_pool2d
from .layers import SITE, Swapped
from .runtime import not_eager

KINDS = {nn.MaxPool2d: "max_pool2d", nn.AvgPool2d: "avg_pool2d"}


def pools_of(model: nn.Module) -> list[str]:
    """Paths of the pools that `swap` takes, or has taken."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, PoolForward) or (type(module) in KINDS and "forward" not in vars(module))
    ]


class PoolForward(Swapped):
    def swapped_members(self) -> Iterator[nn.Module]:
        return iter(())

    def forward(self, input: Any) -> Any:
        if torch.compiler.is_compiling():
            return super().forward(input)
        pool: Any = self
        reason = _elsewhere(input) or (_no_maximum if isinstance(pool, nn.MaxPool2d) else _no_average)(pool, input)
        site = self.__dict__.get(SITE)
        if site is not None:
            site.last = ("original", reason) if reason else ("operator", "")
        if reason:
            return super().forward(input)
        kernel = _pair(pool.kernel_size)
        if isinstance(pool, nn.MaxPool2d):
            return max_pool2d(input, kernel, _pair(pool.stride), _pair(pool.padding))
        return avg_pool2d(input, kernel, pool.count_include_pad)


def _pair(value: Any) -> Pair:
    """(height, width); where PyTorch does not read them as two of C's int, -1 twice, which no check lets through."""
    pair = (value, value) if type(value) is int else value
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and all(type(n) is int and 0 <= n < 2**31 for n in pair):
        return pair[0], pair[1]
    return -1, -1


def _elsewhere(x: Any) -> str:
    """Why this call is not one that the CPU's operators take; "" where it is."""
    reason = not_eager(x)
    if reason is not None:
        return reason
    if not x.is_cpu or x.layout != torch.strided:
        return f"the input is a {x.layout} tensor on {x.device}"
    if x.dim() != 4 or x.numel() == 0 or x.dtype not in DTYPES:
        return f"the input is {x.dtype} {list(x.shape)}"
    if not x.is_contiguous(memory_format=torch.channels_last):
        return "the input is not channels-last"
    if not _extension.available:
        return "the compiled operators are not there"
    if backends.forced() not in (None, "cpu"):
        return f"use_backend({backends.forced()!r})"
    return ""


def _no_maximum(pool: nn.MaxPool2d, x: Tensor) -> str:
    """Why the operator cannot be this pool; wrong settings are PyTorch's to refuse."""
    if pool.return_indices or pool.ceil_mode or _pair(pool.dilation) != (1, 1):
        return "return_indices, ceil_mode or a dilation"
    kernel, stride, padding = _pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding)
    fits = all(
        1 <= window <= size + 2 * pad and step >= 1 and 0 <= pad <= window // 2
        for window, step, pad, size in zip(kernel, stride, padding, x.shape[2:], strict=True)
    )
    if not fits or kernel[0] * kernel[1] > 256:
        return f"kernel_size {pool.kernel_size}, stride {pool.stride}, padding {pool.padding}"
    return ""


def _no_average(pool: nn.AvgPool2d, x: Tensor) -> str:
    if pool.ceil_mode or pool.divisor_override is not None:
        return "ceil_mode or divisor_override"
    kernel = _pair(pool.kernel_size)
    same = kernel[0] % 2 == kernel[1] % 2 == 1 and _pair(pool.padding) == (kernel[0] // 2, kernel[1] // 2)
    if not same or min(kernel) < 1 or _pair(pool.stride) != (1, 1):
        return f"kernel_size {pool.kernel_size}, stride {pool.stride}, padding {pool.padding}"
    return ""
