"""`torch.compile(model, backend="inception_kernels")`: for inference as `optimize`, for all else plain PyTorch."""

from __future__ import annotations

import logging
import operator
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import _extension
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
    """One graph of torch.compile. Parameters and buffers are taken as constants, and again when they have changed."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.declined = ""  # why the last call ran as plain PyTorch; empty where it did not
        self.optimized: Optimized | None = None
        self._static: list[int] | None = None  # positions of parameters and buffers among the inputs
        self._moving: list[int] = []  # of all other tensors
        self._held: tuple[Tensor, ...] = ()
        self._versions: list[int] = []
        self._others: tuple[Any, ...] = ()  # numbers among the inputs
        _graphs.add(self)

    def __call__(self, *inputs: Any) -> Any:
        reason = self._reason(inputs)
        if reason is None:
            try:
                return self._run(inputs)
            except CaptureError as error:
                reason = str(error)
        if reason != self.declined:
            log.warning("torch.compile backend %s runs a graph as plain PyTorch: %s", NAME, reason)
            self.declined = reason
        return self.graph(*inputs)

    def _reason(self, inputs: tuple[Any, ...]) -> str | None:
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
        return None

    def _run(self, inputs: tuple[Any, ...]) -> Any:
        if self._static is None:
            self._static = [i for i, value in enumerate(inputs) if _is_static(value)]
            self._moving = [i for i, value in enumerate(inputs) if i not in self._static and isinstance(value, Tensor)]
        static = tuple(inputs[i] for i in self._static)
        moving = [inputs[i] for i in self._moving]
        others = tuple(value for value in inputs if not isinstance(value, Tensor))
        same = (
            self.optimized is not None
            and others == self._others
            and all(map(operator.is_, static, self._held))
            and [_version(tensor) for tensor in static] == self._versions
        )
        if not same:
            bound = _Bound(self.graph, inputs, frozenset(self._static))
            self.optimized = Optimized(bound)
            self._held, self._others = static, others
            self._versions = [_version(tensor) for tensor in static]
        assert self.optimized is not None
        results = self.optimized(*moving)
        self.declined = ""
        return results

    def __str__(self) -> str:
        if self.declined or self.optimized is None:
            return f"plain PyTorch: {self.declined or 'not called yet'}"
        return str(self.optimized.report)


def _is_static(value: Any) -> bool:
    return isinstance(value, nn.Parameter) or hasattr(value, "_dynamo_static_input_type")


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class _Bound(nn.Module):
    """The graph as a function of what is neither parameter nor number."""

    def __init__(self, graph: fx.GraphModule, inputs: tuple[Any, ...], static: frozenset[int]) -> None:
        super().__init__()
        self.graph = graph
        self.numbers = {i: value for i, value in enumerate(inputs) if not isinstance(value, Tensor)}
        self.static = sorted(static)
        self.count = len(inputs)
        for i in self.static:
            self.register_buffer(f"input_{i}", inputs[i].detach())

    def forward(self, *moving: Tensor) -> Any:
        fixed = {i: getattr(self, f"input_{i}") for i in self.static}
        rest = iter(moving)
        inputs = [
            fixed[i] if i in fixed else self.numbers[i] if i in self.numbers else next(rest) for i in range(self.count)
        ]
        return self.graph(*inputs)
