"""What the passes ask of a graph."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import fx, nn

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
