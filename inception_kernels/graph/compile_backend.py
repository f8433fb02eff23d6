"""`torch.compile(model, backend="inception_kernels")`: for inference as `optimize`, for all else plain PyTorch."""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import _extension
from ..swap.stamp import Stamp
from .capture import CaptureError
from .module import Optimized

NAME = "inception_kernels"
log = logging.getLogger("inception_kernels")
_graphs: weakref.WeakSet[CompiledGraph] = weakref.WeakSet()


def compile_graph(graph: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
    """The backend: registered with torch.compile under the package's name."""
    return CompiledGraph(graph)


def compiled_graphs() -> list[CompiledGraph]:
    """The graphs that torch.compile has given to this backend and that are alive; print one for what it runs."""
    return list(_graphs)


def register() -> None:
    """Makes the name known to torch.compile. An installed package need not: it has an entry point."""
    from torch._dynamo.backends import registry

    if NAME not in registry._COMPILER_FNS:
        registry.register_backend(compile_graph, name=NAME)


def register_if_loaded() -> None:
    """`register` where torch._dynamo is there already: loading it takes as long as loading torch."""
    if "torch._dynamo" in sys.modules:
        register()


class CompiledGraph:
    """One graph of torch.compile. Parameters and buffers are taken as constants, and again when they have changed.

    `swap.stamp` says which changes are noticed.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.declined = ""  # why the last call ran as plain PyTorch; empty where it did not
        self._kinds: list[int] | None = None  # of the inputs; buffers lose their mark when they are replaced
        self.optimized: Optimized | None = None
        self._uncapturable: dict[Any, str] = {}  # by numbers and shapes -> why
        self._stamp: Stamp | None = None
        self._binding = threading.Lock()
        _graphs.add(self)

    def __call__(self, *inputs: Any) -> Any:
        if self._kinds is None:
            self._kinds = [_kind(value) for value in inputs]
        static, moving, numbers = (
            [value for value, kind in zip(inputs, self._kinds, strict=True) if kind == wanted]
            for wanted in (_STATIC, _MOVING, _NUMBER)
        )
        reason = self._reason(inputs, static)
        if reason is None:
            shapes = (*numbers, *((value.shape, value.dtype) for value in moving))
            reason = self._uncapturable.get(shapes)
            if reason is None:
                try:
                    results = self._bound(inputs, static)(*moving, *numbers)
                except CaptureError as error:
                    reason = self._uncapturable[shapes] = str(error)
                else:
                    self.declined = ""
                    return results
        if reason != self.declined:
            log.warning("torch.compile backend %s runs a graph as plain PyTorch: %s", NAME, reason)
            self.declined = reason
        return self.graph(*inputs)

    def _reason(self, inputs: tuple[Any, ...], static: list[Tensor]) -> str | None:
        if not _extension.available:
            return _extension.reason
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return "gradients are wanted: call the model under torch.no_grad() or torch.inference_mode()"
        other = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
        if other is not None:
            return f"it has a tensor on {other}: this backend runs on the CPU"
        if torch.is_autocast_enabled("cpu"):
            return "autocast is on: convert the model to the dtype instead"
        if not Stamp.possible(static):
            return "parameters made under torch.inference_mode() do not tell when they change"
        return None

    def _bound(self, inputs: tuple[Any, ...], static: list[Tensor]) -> Optimized:
        with self._binding:
            if self.optimized is None or self._stamp is None or not self._stamp.holds(static):
                self.optimized = Optimized(_Bound(self.graph, inputs, self._kinds or []))
                self._stamp = Stamp(static)
            return self.optimized

    def __str__(self) -> str:
        if self.declined or self.optimized is None:
            return f"plain PyTorch: {self.declined or 'not called yet'}"
        return str(self.optimized.report)


_STATIC, _MOVING, _NUMBER = range(3)


def _kind(value: Any) -> int:
    if not isinstance(value, Tensor):
        return _NUMBER
    static = isinstance(value, nn.Parameter) or hasattr(value, "_dynamo_static_input_type")
    return _STATIC if static else _MOVING


class _Bound(nn.Module):
    """The graph as a function of what is no parameter: first the tensors, then the numbers."""

    def __init__(self, graph: fx.GraphModule, inputs: tuple[Any, ...], kinds: list[int]) -> None:
        super().__init__()
        self.graph = graph
        self.kinds = kinds
        for i, value in enumerate(inputs):
            if self.kinds[i] == _STATIC:
                self.register_buffer(f"input_{i}", value.detach())

    def forward(self, *values: Any) -> Any:
        moving = iter(values)
        numbers = iter(values[self.kinds.count(_MOVING) :])
        inputs = [
            getattr(self, f"input_{i}") if kind == _STATIC else next(moving if kind == _MOVING else numbers)
            for i, kind in enumerate(self.kinds)
        ]
        return self.graph(*inputs)
