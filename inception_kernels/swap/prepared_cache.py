"""What is kept of a layer for evaluation: batch norm folded, weights packed, until anything of it changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _extension, backends
from ..ops._common import autocast_dtype, cast
from .atoms import frozen
from .stamp import Stamp


@dataclass
class Prepared:
    """Weights packed for x as it comes, or as autocast makes it. Output channels-last."""

    run: Callable[..., Tensor]
    cast: torch.dtype | None  # of activations and weights, under autocast
    stamp: Stamp
    settings: tuple[object, ...]
    shape: torch.Size  # of the last input that the device's kernels have taken

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = x if self.cast is None else x.to(self.cast)
        return self.run(x) if residual is None else self.run(x, cast(residual, self.cast))


class PreparedCache:
    """One layer's, for one operator."""

    def __init__(self, operator: str) -> None:
        self.operator = operator
        self.held: Prepared | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"operator": self.operator, "held": None}

    def drop_cache(self) -> None:
        self.held = None

    def get(
        self,
        x: Tensor,
        tensors: Sequence[Tensor | None],
        weight: Tensor | None,
        settings: tuple[object, ...],
        shapes: Callable[[], tuple[int, ...]],
        build: Callable[[torch.dtype | None], Callable[..., Tensor]],
    ) -> Prepared | None:
        """None where the backend in force has no prepared layers, or something here can be trained.

        Args:
            x: the input, on the device of the `tensors` that the layer consists of, `weight` among them.
            settings: all else that it depends on.
            shapes: what the CUDA kernels are asked about.
            build: makes the prepared layer, with weights of the given dtype where there is one.
        """
        device = x.device.type
        if not _extension.available or device not in ("cpu", "cuda") or backends.forced() not in (None, device):
            return None
        if torch.is_grad_enabled() and (x.requires_grad or any(t is not None and t.requires_grad for t in tensors)):
            return None
        dtype = None
        if torch.is_autocast_enabled(device):
            dtype = autocast_dtype(x)
            if dtype is None and weight is not None and x.dtype != weight.dtype:
                return None  # the operator's to refuse
        settings = (backends.isa_changes(), dtype, *settings)
        held = self.held
        current = held is not None and held.settings == settings and held.stamp.holds(tensors)
        if held is not None and current and held.shape == x.shape:
            return held
        if device == "cuda" and backends.decide(self.operator, cast(x, dtype), shapes)[0] != "cuda":
            return None
        if held is not None and current:
            held.shape = x.shape
            return held
        self.held = None
        if not Stamp.possible(tensors):
            return None
        held = Prepared(build(dtype), dtype, Stamp(tensors), frozen(settings), x.shape)
        self.held = held  # which another thread may replace at once
        return held
