"""Tensors for the tests of CUDA kernels."""

import torch
from torch import Tensor


def in_slice(t: Tensor, more: int, first: int) -> Tensor:
    """The values of `t` as channels first.. of a channels-last tensor with `more` channels, the others NaN."""
    N, K, P, Q = t.shape
    whole = torch.full((N, K + more, P, Q), float("nan"), dtype=t.dtype).contiguous(memory_format=torch.channels_last)
    part = whole[:, first : first + K]
    part.copy_(t)
    return part


def dense(t: Tensor) -> Tensor:
    return in_slice(t, 0, 0)


def to_tf32(t: Tensor) -> Tensor:
    """Rounded to ten bits of mantissa, ties away from zero."""
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
