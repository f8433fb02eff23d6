"""The memory of the tensors that the CPU operators return.

Outputs and gradients of 16 KiB or more come from a pool: when a tensor dies, its memory waits for the next one instead
of going back to the system, which would hand it out again page by page, cleared. A segment that some thousand tensors
did not need goes back by itself.

The storage of such a tensor cannot be resized (``Tensor.resize_`` beyond its size raises), and PyTorch's memory
profiler does not see it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import _extension


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of this process."""

    taken: int
    """of tensors that are alive, with what rounding adds"""
    kept: int
    """waiting for the next tensors"""


def use() -> MemoryUse:
    """What the pool holds now; nothing without the compiled operators."""
    return MemoryUse(*torch.ops.inception_kernels._memory_use()) if _extension.available else MemoryUse(0, 0)


def release() -> None:
    """Give the system what waits, as far as whole segments (32 MiB and more) are free."""
    if _extension.available:
        torch.ops.inception_kernels._release_memory()


def keep(enabled: bool) -> bool:
    """Whether tensors to come are from the pool (as at the start) or from PyTorch's allocator, in the whole process.

    Returns what held before (False without the compiled operators, whatever was asked for).
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled: expected True or False, got {enabled!r}")
    return torch.ops.inception_kernels._keep_memory(enabled) if _extension.available else False
