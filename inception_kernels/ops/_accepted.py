"""What an operator's checks have let pass: the layers of a training step are not checked again in every step."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")

_PLAIN = (Tensor, nn.Parameter)
_MOST = 4096


class Accepted(Generic[Result]):
    """Results of checks by what they looked at: everything about the tensors but their values."""

    def __init__(self) -> None:
        self._results: dict[Hashable, Result] = {}

    def get(self, signature: Hashable | None) -> Result | None:
        return None if signature is None else self._results.get(signature)

    def add(self, signature: Hashable | None, result: Result) -> None:
        if signature is None:
            return
        if len(self._results) >= _MOST:
            self._results.clear()
        self._results[signature] = result


def signature(
    activations: Sequence[Tensor | None], parameters: Sequence[Tensor | None], *options: Hashable
) -> Hashable | None:
    """All that decides whether a call is accepted, but for where the activations lie (:func:`apart`).

    None where that cannot be told: no plain dense tensors, or a compiler or function transform at work.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    parts: list[Hashable] = [options]
    for tensor in activations:
        if tensor is None:
            parts.append(None)
        elif type(tensor) in _PLAIN and tensor.layout is torch.strided:
            parts.append((tensor.shape, tensor.dtype, tensor.device))
        else:
            return None
    for tensor in parameters:
        if tensor is None:
            parts.append(None)
        elif type(tensor) in _PLAIN and tensor.layout is torch.strided:
            place = (tensor.device, tensor.data_ptr(), tensor.stride())
            parts.append((tensor.shape, tensor.dtype, tensor.requires_grad, place))
        else:
            return None
    return tuple(parts)


def apart(written: Sequence[Tensor | None], read: Sequence[Tensor | None]) -> bool:
    """Whether no storage of one group overlaps one of the other. False says only that they have to be looked at."""
    memory = [_storage(tensor) for tensor in written if tensor is not None]
    for tensor in read:
        if tensor is None:
            continue
        begin, end = _storage(tensor)
        if any(begin < their_end and their_begin < end for their_begin, their_end in memory):
            return False
    return True


def _storage(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    begin = storage.data_ptr()
    return begin, begin + storage.nbytes()
