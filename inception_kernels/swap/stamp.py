"""Notice cheaply that a tensor was replaced or written since a folded copy of it was made."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from operator import is_

from torch import Tensor

_UNSIGNED = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}


class Stamp:
    """What some tensors were when it was taken.

    Writes count in `_version`; a new storage shows in `data_ptr`, another view of it in the shape and the strides of
    what has several dimensions. Writes through `.data` count nowhere, so three elements of each CPU tensor are compared
    as well: that catches an update of a whole tensor (an exponential moving average, an initialiser), not one of single
    elements.
    """

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        self._tensors = tuple(tensors)
        self._seen = [(t, t.data_ptr(), t._version) for t in tensors if t is not None]
        self._layouts = [(t, t.shape, t.stride()) for t in tensors if t is not None and t.dim() > 1]
        self._samples = [sample for t in tensors if t is not None for sample in _samples(t)]

    @staticmethod
    def possible(tensors: Sequence[Tensor | None]) -> bool:
        """Inference tensors do not count their writes."""
        return not any(t is not None and t.is_inference() for t in tensors)

    def holds(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether the same tensors, in the same order, still hold what they held."""
        if len(tensors) != len(self._tensors) or not all(map(is_, tensors, self._tensors)):
            return False
        for tensor, address, version in self._seen:
            if tensor._version != version or tensor.data_ptr() != address:
                return False
        for tensor, shape, strides in self._layouts:
            if tensor.shape != shape or tensor.stride() != strides:
                return False
        # Only now is it certain that the sampled addresses are still the tensors' own.
        return all(cell.value == value for cell, value in self._samples)


def _samples(tensor: Tensor) -> list[tuple[ctypes._SimpleCData[int], int]]:
    size = tensor.element_size()
    if tensor.device.type != "cpu" or tensor.data_ptr() == 0 or tensor.numel() == 0 or size not in _UNSIGNED:
        return []
    offsets = {
        sum(index(length) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
        for index in (lambda n: 0, lambda n: n // 2, lambda n: n - 1)
    }
    cells = [_UNSIGNED[size].from_address(tensor.data_ptr() + offset * size) for offset in sorted(offsets)]
    return [(cell, cell.value) for cell in cells]
