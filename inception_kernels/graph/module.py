"""`optimize`: a network for inference as one operator call."""

from __future__ import annotations

import copy
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .. import _extension
from .capture import Captured, capture, is_free_of_batch_sizes
from .encode import Constants, encode
from .layout import Schedule, schedule
from .partition import Segment, partition
from .passes import apply_passes
from .passes._graph import same_graph
from .report import GraphReport, StepTime, describe
from .steps import Shape

# Each has its own packed weights, as large as the model.
KEPT_SHAPES = 8
# Of batch sizes of one of them, in which packed weights are shared: some 50 KB each.
KEPT_PLANS = 128

_Environment = dict[fx.Node, Any]

aten = torch.ops.aten
_FOR_ANY_STRIDES = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


class _Program:
    """One segment, encoded for one shape."""

    def __init__(
        self, segment: Segment, plan: Schedule, program: Tensor, constants: Constants, sizes: list[int]
    ) -> None:
        self.segment, self.plan = segment, plan
        self.program, self.sizes = program, sizes
        self._constants = constants

    @property
    def constants(self) -> Tensor:
        """All programs of a network read one buffer."""
        return self._constants.buffer

    def __call__(self, env: _Environment) -> None:
        inputs = [env[node] for node in self.segment.inputs]
        outputs = torch.ops.inception_kernels.run_program(inputs, self.program, self.constants, self.sizes)
        env.update(zip(self.segment.outputs, outputs, strict=True))


class _Constant:
    """A returned tensor that does not depend on the input."""

    def __init__(self, node: fx.Node, value: Tensor) -> None:
        self.node, self.value = node, value

    def __call__(self, env: _Environment) -> None:
        env[self.node] = self.value


class _Network:
    """A captured graph after the passes, and its programs for every batch size that came."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.captured: Captured = capture(model, args, kwargs)
        self.graph = self.captured.graph
        self.changed = apply_passes(self.graph)
        self.actions = partition(self.graph)
        self.placeholders = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        self.returned: list[fx.Node] = list(next(n for n in self.graph.graph.nodes if n.op == "output").args[0])
        self.constants: dict[torch.dtype, Constants] = {}
        self._plans: dict[Any, list[Callable[[_Environment], None]]] = {}
        self._planning = threading.RLock()

    def computes_as(self, other: _Network) -> bool:
        """Whether this one, captured with another batch size, is the same, and without PyTorch's calls.

        They may hold the size as a number that is not seen here.
        """
        calls = any(isinstance(action, fx.Node) and action.op == "call_function" for action in self.actions)
        return (
            not calls
            and self.captured.outputs == other.captured.outputs
            and self.captured.out_spec == other.captured.out_spec
            and same_graph(self.graph, other.graph)
        )

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        env: _Environment = dict(zip(self.placeholders, tensors, strict=True))
        key = tuple((t.shape, t.dtype, t.dim() == 4 and t.stride(1) == 1) for t in tensors)
        plan = self._plans.get(key)
        if plan is None:
            with self._planning:
                self._plans[key] = self._make_plan(env)
                if len(self._plans) > KEPT_PLANS:
                    del self._plans[next(iter(self._plans))]
        else:
            for step in plan:
                step(env)
        return [env[node] for node in self.returned]

    def programs(self, tensors: list[Tensor]) -> list[tuple[_Program, list[Tensor]]]:
        env: _Environment = dict(zip(self.placeholders, tensors, strict=True))
        with self._planning:
            plan = self._make_plan(env)
        return [(step, [env[node] for node in step.segment.inputs]) for step in plan if isinstance(step, _Program)]

    def _make_plan(self, env: _Environment) -> list[Callable[[_Environment], None]]:
        """Runs once, because the shapes of what PyTorch computes are known only then."""
        plan: list[Callable[[_Environment], None]] = []
        for action in self.actions:
            step = self._program(action, env) if isinstance(action, Segment) else self._torch_call(action)
            step(env)
            plan.append(step)
        for node in self.returned:
            if node.op == "get_attr":
                plan.append(_Constant(node, getattr(self.graph, str(node.target))))
                plan[-1](env)
        return plan

    def _program(self, segment: Segment, env: _Environment) -> _Program:
        tensors = [env[node] for node in segment.inputs]
        dtype = tensors[0].dtype
        shapes: dict[fx.Node, Shape] = {
            node: tuple(tensor.shape) for node, tensor in zip(segment.inputs, tensors, strict=True)
        }
        constants = self.constants.setdefault(dtype, Constants(dtype))
        scattered = frozenset(
            node
            for node, tensor in zip(segment.inputs, tensors, strict=True)
            if tensor.shape[1] > 1 and tensor.stride(1) != 1
        )
        plan = schedule(self.graph, segment.nodes, shapes, segment.outputs, scattered, dtype.itemsize)
        program, sizes = encode(plan, constants, dtype.itemsize)
        return _Program(segment, plan, program, constants, sizes)

    def _torch_call(self, node: fx.Node) -> Callable[[_Environment], None]:
        attributes = {
            source: getattr(self.graph, str(source.target))
            for source in node.all_input_nodes
            if source.op == "get_attr"
        }
        target: Any = self.graph.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        # Values here have adjacent channels, whatever the model's have.
        target = _FOR_ANY_STRIDES.get(target, target)

        def call(env: _Environment) -> None:
            def look_up(source: fx.Node) -> Any:
                return attributes[source] if source in attributes else env[source]

            env[node] = target(*fx.map_arg(node.args, look_up), **fx.map_arg(node.kwargs, look_up))

        return call


class Optimized(nn.Module):
    """What :func:`optimize` returns: call it as the model. `print` it for what runs and what does not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = [model]  # no child: its parameters are not this module's
        self._networks: OrderedDict[Any, _Network] = OrderedDict()  # the one used last at the end
        self._bound_to_batch: set[Any] = set()
        self._capturing = threading.Lock()
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        _check_inputs(tensors)
        network = self._network(leaves, spec, args, kwargs)
        with torch.no_grad():
            results = network.run(tensors)
        captured = network.captured
        outputs = [results[output] if isinstance(output, int) else output[0] for output in captured.outputs]
        return pytree.tree_unflatten(outputs, captured.out_spec)

    def _network(self, leaves: list[Any], spec: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Network:
        # Image sizes may be anywhere in a captured graph (a pool over x.shape[2:]), and so may batch sizes.
        batches = [leaf.shape[:1] for leaf in leaves if isinstance(leaf, Tensor)]
        equal = tuple(batches.index(batch) for batch in batches)
        key = (spec, equal, *(_without_batch(leaf, batches[0]) for leaf in leaves))
        exact = (key, *batches)
        several = all(size >= 2 for batch in batches for size in batch)
        network = self._known(key, exact, several)
        if network is not None:
            return network
        with self._capturing:  # and another thread may have done so meanwhile
            return self._known(key, exact, several) or self._capture(key, exact, several, args, kwargs)

    def _known(self, key: Any, exact: Any, several: bool) -> _Network | None:
        """That of all batches of several images, or of this batch."""
        return (self._recall(key) if several else None) or self._recall(exact)

    def _capture(self, key: Any, exact: Any, several: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Network:
        network = _Network(self._model[0], args, kwargs)
        alike = [
            (name, other)
            for name, other in list(self._networks.items())
            if (name == key or name[0] == key) and other.computes_as(network)
        ]
        if alike:
            network = alike[0][1]
            if several and key not in self._bound_to_batch:
                if is_free_of_batch_sizes(self._model[0], args, kwargs):
                    exact = key
                else:
                    self._bound_to_batch.add(key)
        self._networks[exact] = network
        if self._kept() > KEPT_SHAPES:
            while self._kept() > KEPT_SHAPES:
                self._networks.popitem(last=False)
            warnings.warn(
                f"an optimised network keeps {KEPT_SHAPES} input shapes and got another: the one that was not used for "
                "the longest time is captured again when it comes back. Bring inputs to fewer sizes, or swap the model",
                stacklevel=6,  # _network, forward, and nn.Module's two frames
            )
        return network

    def _kept(self) -> int:
        """One network may be there for several batch sizes."""
        return len(set(map(id, self._networks.values())))

    def _recall(self, key: Any) -> _Network | None:
        network = self._networks.get(key)
        if network is not None:
            with suppress(KeyError):  # another thread may have dropped it meanwhile
                self._networks.move_to_end(key)
        return network

    def __getstate__(self) -> dict[str, Any]:
        """Of copies and files: what was captured is captured again."""
        return {**self.__dict__, "_networks": OrderedDict(), "_capturing": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._capturing = threading.Lock()

    def train(self, mode: bool = True) -> Any:
        if mode:
            raise RuntimeError("an optimised network is for inference only: train the model that it was made from")
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        raise RuntimeError("an optimised network is a snapshot: convert the model that it was made from, then optimise")

    def programs(self, *args: Any, **kwargs: Any) -> list[tuple[_Program, list[Tensor]]]:
        """The programs of a call with these arguments, each with its inputs."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        _check_inputs(tensors)
        with torch.no_grad():
            return self._network(leaves, spec, args, kwargs).programs(tensors)

    @property
    def report(self) -> GraphReport:
        """What was fused, what runs as PyTorch operators and why, per captured input shape."""
        return describe([(network.graph, network.actions, network.captured.torch_calls, network.changed)
                         for network in self._networks.values()])  # fmt: skip

    def profile(self, *args: Any, repeats: int = 20, **kwargs: Any) -> list[StepTime]:
        """Milliseconds of every step in a call with these arguments: medians, each step with the machine for itself."""
        from .profile import profile

        return profile(self, args, kwargs, repeats)

    def extra_repr(self) -> str:
        return str(self.report)


def _without_batch(leaf: Any, batch: torch.Size) -> Any:
    """What of an argument may be in a graph, the first tensor's batch size apart, be it as a number by itself."""
    if isinstance(leaf, Tensor):
        return leaf.dtype, leaf.shape[1:]
    return "batch" if type(leaf) is int and (leaf,) == batch else (type(leaf), leaf)


def _check_inputs(tensors: list[Tensor]) -> None:
    if not tensors:
        raise TypeError("expected at least one tensor among the arguments")
    if torch.is_autocast_enabled("cpu"):
        raise RuntimeError(
            "an optimised network runs in the dtype of its model, not in autocast's: convert the model and its inputs "
            "and optimise it, or call it outside autocast"
        )
    for tensor in tensors:
        if tensor.device.type != "cpu":
            raise ValueError(
                f"expected CPU tensors, as the model was optimised for the CPU; got one on {tensor.device}"
            )
        if tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "an optimised network computes no gradients: call it under torch.no_grad() or with inputs that do not "
                "require them"
            )


def optimize(model: nn.Module, example_input: Any) -> Optimized:
    """A new module that computes what `model` does in evaluation, for inference only.

    The whole network is one call into C++: batch norms folded, siblings merged, average pools moved behind the 1 x 1
    that follows them, every branch written into its slice of the concatenation, intermediates in one buffer that is
    planned once per input shape. What has no kernel here runs as the PyTorch operator that it is: `print` the result,
    or read its `.report`, for which and why. On a GPU use :func:`inception_kernels.swap`.

    It is a snapshot: later changes of the model's parameters do not reach it. It keeps a copy of the model, which is
    captured again for images of another size, and for a second and a third batch size, until it is known that nothing
    depends on it (further ones are then only planned), the packed weights of the 8 image sizes used last, and the plans
    of the last 128 batch sizes.

    Args:
        model: in evaluation (`model.eval()`), on the CPU, that `torch.export` can capture.
        example_input: a tensor, a tuple or list of arguments or a dictionary of keyword arguments.

    Returns:
        An `Optimized` module that takes what the model takes and returns what it returns.

    Raises:
        TypeError: `model` is not a module.
        ValueError: the model is in training, or not on the CPU.
        CaptureError: `torch.export` cannot follow the model; the message says where.
        RuntimeError: the package was built without its extension, or autocast is on.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if any(module.training for module in model.modules()):
        raise ValueError("model: expected a model in evaluation, got one in training: call model.eval() first")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ValueError(f"model: expected all parameters on the CPU, got {name} on {tensor.device}")
    if not _extension.available:
        raise RuntimeError(f"optimize needs the compiled extension: {_extension.reason}")
    args, kwargs = _arguments(example_input)
    optimized = Optimized(copy.deepcopy(model))
    with torch.no_grad():
        optimized(*args, **kwargs)
    return optimized


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, dict):
        return (), example
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}
