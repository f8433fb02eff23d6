"""Which tensors share memory: what a call writes must not be anything that it reads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def separate_memory(written: Mapping[str, Tensor | None], read: Mapping[str, Tensor | None]) -> None:
    """Training writes the running statistics: each needs memory of its own.

    Raises:
        ValueError: two of ``written`` overlap, one overlaps one of ``read``, or one is expanded (stride 0).
    """
    if torch.compiler.is_compiling():
        return
    others = [
        (name, tensor, *_extent(tensor)) for name, tensor in read.items() if tensor is not None and _has_address(tensor)
    ]
    for name, tensor in written.items():
        if tensor is None or not _has_address(tensor):
            continue
        if tensor.stride(0) == 0 and tensor.shape[0] > 1:
            raise ValueError(f"{name}: expected memory for each channel in training, got an expanded tensor (stride 0)")
        begin, end = _extent(tensor)
        for other, theirs, their_begin, their_end in others:
            if begin < their_end and their_begin < end and not _interleaved(tensor, theirs):
                raise ValueError(f"{name} and {other}: expected separate memory in training, got tensors that overlap")
        others.append((name, tensor, begin, end))


def _has_address(tensor: Tensor) -> bool:
    if tensor.is_meta or tensor.numel() == 0 or isinstance(tensor, FakeTensor):
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The bytes [begin, end) that a tensor's elements lie in."""
    begin = tensor.data_ptr()
    if tensor.is_contiguous():
        return begin, begin + tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.element_size()


def _interleaved(a: Tensor, b: Tensor) -> bool:
    """Columns of one matrix: extents that overlap although no element does."""
    if a.dim() != 1 or b.dim() != 1 or a.stride(0) != b.stride(0) or a.dtype != b.dtype:
        return False
    distance = abs(a.data_ptr() - b.data_ptr()) // a.element_size()
    return distance % a.stride(0) != 0
