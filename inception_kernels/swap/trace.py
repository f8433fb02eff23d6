"""The data flow of one module's own forward, with every module that it calls as a single step.

Each container is traced by itself (torch.fx): one that cannot be traced never hides its children from the
search. Training and evaluation may take different paths, so both are traced.
"""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

_ACTIVATION_FUNCTIONS = {
    F.relu: "relu",
    torch.relu: "relu",
    F.relu_: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    F.elu: "elu",
    F.silu: "silu",
}
_INPLACE_FUNCTIONS = (F.relu_, torch.relu_)
_ACTIVATION_METHODS = {"relu": "relu", "relu_": "relu"}
_METADATA_ATTRIBUTES = ("ndim", "shape", "dtype", "device", "is_cuda", "requires_grad")
_METADATA_METHODS = ("dim", "size", "is_floating_point", "numel")


class _CallsOnly(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


@dataclass
class Traced:
    graph: fx.Graph | None
    reason: str = ""


@contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Set `training` on this one module (its children are not run) and undo what its forward does to it.

    It runs on copies of the module's own buffers and containers.
    """
    before = dict(vars(module))
    held = {name: copy.copy(value) for name, value in before.items() if isinstance(value, list | dict | set)}
    vars(module).update(held)
    vars(module)["_buffers"] = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    module.training = training
    try:
        yield
    finally:
        vars(module).clear()
        vars(module).update(before)


def trace(module: nn.Module, training: bool) -> Traced:
    """Trace `module.forward`; optional arguments keep their defaults."""
    arguments = {}
    for name, parameter in inspect.signature(type(module).forward).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            arguments[name] = parameter.default
    with mode(module, training), torch.no_grad():
        try:
            return Traced(_CallsOnly().trace(module, concrete_args=arguments or None))
        except Exception as error:  # a forward is arbitrary code: whatever it raises, it cannot be followed
            summary = str(error).strip().splitlines()
            return Traced(None, f"{type(error).__name__}: {summary[0] if summary else 'no message'}")


def _is_metadata(node: fx.Node) -> bool:
    """Reads shapes or types only, and nothing but assertions uses what it read."""
    if node.op == "call_function":
        if node.target in (torch._assert, getattr(torch.fx._symbolic_trace, "_assert_is_none", None)):
            return True
        reads = node.target is getattr and len(node.args) > 1 and node.args[1] in _METADATA_ATTRIBUTES
        compares = getattr(node.target, "__module__", "") == "_operator"
        if not (reads or compares):
            return False
    elif not (node.op == "call_method" and node.target in _METADATA_METHODS):
        return False
    return bool(node.users) and all(_is_metadata(user) for user in node.users)


def readers(node: fx.Node) -> list[fx.Node]:
    """Nodes that use the values of `node`; assertions on its shape do not count."""
    return [user for user in node.users if not _is_metadata(user)]


def sole_tensor_argument(node: fx.Node) -> fx.Node | None:
    """The one node that a call reads, when that is its first argument and nothing else is a node."""
    inputs = node.all_input_nodes
    return inputs[0] if len(inputs) == 1 and node.args and node.args[0] is inputs[0] else None


def functional_activation(node: fx.Node) -> tuple[str, bool] | None:
    """(name, inplace) where the node calls a supported activation function."""
    if node.op == "call_method" and node.target in _ACTIVATION_METHODS:
        return _ACTIVATION_METHODS[str(node.target)], str(node.target).endswith("_")
    if node.op != "call_function" or node.target not in _ACTIVATION_FUNCTIONS:
        return None
    kind = _ACTIVATION_FUNCTIONS[node.target]
    names = ("alpha", "inplace") if kind == "elu" else ("inplace",)
    arguments = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    if arguments.get("alpha", 1.0) != 1.0:
        return None
    return kind, node.target in _INPLACE_FUNCTIONS or bool(arguments.get("inplace", False))


def chain(graph: fx.Graph) -> list[fx.Node] | None:
    """The calls between the input and the output where each one reads only the one before; else None."""
    inputs = [node for node in graph.nodes if node.op == "placeholder" and readers(node)]
    if len(inputs) != 1:
        return None
    calls: list[fx.Node] = []
    node = inputs[0]
    while True:
        following = readers(node)
        if len(following) != 1 or following[0].all_input_nodes != [node]:
            return None
        successor = following[0]
        if successor.op == "output":
            steps = [n for n in graph.nodes if n.op != "placeholder" and not _is_metadata(n)]
            return calls if successor.args[0] is node and len(steps) == len(calls) + 1 else None
        if sole_tensor_argument(successor) is not node:
            return None
        if successor.op == "call_module" and len(successor.args) == 1 and not successor.kwargs:
            calls.append(successor)
        elif functional_activation(successor) is not None:
            calls.append(successor)
        else:
            return None
        node = successor
