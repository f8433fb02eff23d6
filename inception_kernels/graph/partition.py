"""A graph as programs and PyTorch calls in turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from .passes._graph import step_of
from .steps import Concatenate, Depthwise, Slice, Step


@dataclass
class Segment:
    """Nodes that one program computes; what it reads and what others read of it."""

    nodes: list[fx.Node]
    inputs: list[fx.Node]
    outputs: list[fx.Node]


Action = Segment | fx.Node


def is_native(graph: fx.GraphModule, node: fx.Node) -> bool:
    kind = step_of(graph, node, Step) or step_of(graph, node, Concatenate) or step_of(graph, node, Slice)
    return kind is not None and not isinstance(kind, Depthwise)


def partition(graph: fx.GraphModule) -> list[Action]:
    """In an order in which everything is there when it is read, in as few programs as that order of nodes allows."""
    dtypes = _dtypes(graph)
    actions: list[Action] = []
    open_nodes: list[fx.Node] = []
    late: list[fx.Node] = []  # PyTorch calls that read the open program

    def close() -> None:
        if open_nodes:
            segment, slices = _segment(graph, list(open_nodes))
            actions.extend([segment, *slices] if segment.outputs else slices)
        actions.extend(late)
        open_nodes.clear()
        late.clear()

    for node in graph.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        reads = set(node.all_input_nodes)
        if is_native(graph, node):
            if reads & set(late) or (open_nodes and dtypes[open_nodes[0]] != dtypes[node]):
                close()
            open_nodes.append(node)
        elif reads & {*open_nodes, *late}:
            late.append(node)
        else:
            actions.append(node)
    close()
    return actions


def _dtypes(graph: fx.GraphModule) -> dict[fx.Node, torch.dtype | None]:
    """A step's is that of what it reads."""
    dtypes: dict[fx.Node, torch.dtype | None] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            dtypes[node] = dtypes[node.all_input_nodes[0]]
        elif node.op == "get_attr":
            dtypes[node] = getattr(graph, str(node.target)).dtype
        else:
            dtypes[node] = getattr(node.meta.get("val"), "dtype", None)
    return dtypes


def _segment(graph: fx.GraphModule, nodes: list[fx.Node]) -> tuple[Segment, list[fx.Node]]:
    inside = set(nodes)
    inputs = dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in inside)
    read = {node for node in nodes if any(user not in inside for user in node.users)}
    # Who reads a view from outside gets it from the whole, which may be a view or an input itself.
    slices: list[fx.Node] = []
    outputs: dict[fx.Node, None] = {}
    for node in reversed(nodes):
        if node not in read:
            continue
        if step_of(graph, node, Slice) is None:
            outputs[node] = None
            continue
        slices.insert(0, node)
        read.update(source for source in node.all_input_nodes if source in inside)
    return Segment(nodes, list(inputs), list(reversed(outputs))), slices
