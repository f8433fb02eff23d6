"""What the passes ask of a graph."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

M = TypeVar("M", bound=nn.Module)


def step_of(graph: fx.GraphModule, node: object, kind: type[M]) -> M | None:
    """The module that a node calls, where it is of this kind; None otherwise."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    return module if isinstance(module, kind) else None


def sole_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def residual_of(node: fx.Node) -> fx.Node | None:
    return node.args[1] if len(node.args) > 1 else None  # type: ignore[return-value]


def insert_step(graph: fx.GraphModule, before: fx.Node, module: nn.Module, *inputs: Any) -> fx.Node:
    """Calls a new module just before a node, under that node's name."""
    count = sum(1 for _ in graph.children())
    name = f"{before.name}_{type(module).__name__.lower()}_{count}"
    graph.add_submodule(name, module)
    with graph.graph.inserting_before(before):
        return graph.graph.call_module(name, tuple(i for i in inputs if i is not None))


def replace(old: fx.Node, new: fx.Node) -> None:
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def same_graph(first: fx.GraphModule, second: fx.GraphModule) -> bool:
    """Whether both compute the same: the same calls with the same numbers and constants."""
    pairs = list(zip(first.graph.nodes, second.graph.nodes, strict=False))
    if len(first.graph.nodes) != len(second.graph.nodes):
        return False
    counterpart = dict(pairs)
    return all(
        one.op == other.op
        and (one.op == "call_module" or one.target == other.target)
        and fx.map_arg((one.args, one.kwargs), counterpart.__getitem__) == (other.args, other.kwargs)
        and (one.op not in ("call_module", "get_attr") or _same_target(first, one, second, other))
        for one, other in pairs
    )


def _same_target(first: fx.GraphModule, one: fx.Node, second: fx.GraphModule, other: fx.Node) -> bool:
    if one.op == "get_attr":
        return _same_value(getattr(first, str(one.target)), getattr(second, str(other.target)))
    mine, its = first.get_submodule(str(one.target)), second.get_submodule(str(other.target))
    if type(mine) is not type(its):
        return False
    numbers = [{name: v for name, v in vars(m).items() if not name.startswith("_")} for m in (mine, its)]
    return numbers[0] == numbers[1] and all(
        _same_value(buffer, its._buffers[name]) for name, buffer in mine._buffers.items()
    )


def _same_value(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or (one.dtype == other.dtype and torch.equal(one, other))
