"""What the operators share: memory format, autocast, gradients of optional arguments."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor


def namespace(backend: str) -> Any:
    """torch.ops.<namespace> that holds this backend's kernels; the Triton ones are loaded when first asked for."""
    if backend != "triton":
        return torch.ops.inception_kernels
    _load_triton()
    return torch.ops.inception_kernels_triton


def _load_triton() -> bool:
    importlib.import_module("inception_kernels.triton.register")
    return True


# What torch.compiler.assume_constant_result does; calling it imports torch._dynamo, which takes as long as torch.
_load_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


def shape_numbers(
    image: Sequence[int], window: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """One convolution as the CUDA kernels describe it: N, C, H, W of the image, K, R, S of the window, its geometry."""
    return (*image, window[0], window[2], window[3], *stride, *padding, *dilation)


def suggests_channels_last(x: Tensor) -> bool:
    """Whether torch.nn.functional.conv2d would return channels-last for this [N, C, H, W] tensor."""
    smallest = 0
    if x.stride(1) == 0:
        return False
    for dim in (1, 3, 2, 0):
        if x.shape[dim] == 0 or x.stride(dim) < smallest:
            return False
        if dim == 0 and smallest == x.stride(1):
            return False
        smallest = x.stride(dim) * max(x.shape[dim], 1)
    return True


def memory_format_of(x: Tensor) -> torch.memory_format:
    return torch.channels_last if suggests_channels_last(x) else torch.contiguous_format


def empty_activations(
    x: Tensor, sizes: Sequence[int], memory_format: torch.memory_format, dtype: torch.dtype | None = None
) -> Tensor:
    """What the compiled operators allocate: x's dtype (or another) and device in one of the two dense formats."""
    return torch.empty(sizes, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks of a convolution on x's device; None outside autocast, for float64 and on meta."""
    kind = x.device.type
    # By name, and not by is_autocast_available: Dynamo of torch 2.11 cannot trace it.
    if kind == "meta" or not torch.is_autocast_enabled(kind) or not x.is_floating_point() or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


@overload
def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor: ...
@overload
def cast(tensor: Tensor | None, dtype: torch.dtype | None) -> Tensor | None: ...
def cast(tensor: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    if tensor is None or dtype is None or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        return tensor
    return tensor.to(dtype)


def wanted(gradients: Sequence[Tensor], mask: Sequence[bool]) -> list[Tensor | None]:
    """The compiled backward returns empty tensors where no gradient was asked for; autograd wants None."""
    return [gradient if needed else None for gradient, needed in zip(gradients, mask, strict=True)]


def refuse_double_backward(operator: str) -> Callable[..., None]:
    def backward(ctx: object, *gradients: Tensor) -> None:
        raise RuntimeError(
            f"{operator} has no second derivative; for double backward run the model under "
            "inception_kernels.use_backend('reference')"
        )

    return backward
