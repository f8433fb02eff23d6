"""Channels that are scaled one by one and concatenated again, as `transform_input` does, become one step."""

from __future__ import annotations

from typing import Any

from torch import fx

from ..steps import Concatenate, Elementwise, Slice, concatenated
from ._graph import insert_step, replace, residual_of, step_of


def gather_channels(graph: fx.GraphModule) -> int:
    count = 0
    for node in list(graph.graph.nodes):
        if step_of(graph, node, Concatenate) is None:
            continue
        parts = [step_of(graph, part, Elementwise) for part in node.args]
        slices = [
            part.args[0] if isinstance(part, fx.Node) and step is not None else None
            for part, step in zip(node.args, parts, strict=True)
        ]
        views = [step_of(graph, view, Slice) for view in slices]
        if any(view is None for view in views) or any(residual_of(part) is not None for part in node.args):
            continue
        sources = {view.args[0] for view in slices if isinstance(view, fx.Node)}
        begins = [view.begin for view in views if view is not None]
        widths = [view.count for view in views if view is not None]
        source: Any = next(iter(sources))
        whole = _channels(source)
        in_order = begins == [sum(widths[:i]) for i in range(len(widths))] and sum(widths) == whole
        steps = [part for part in parts if part is not None]
        if len(sources) != 1 or not in_order or len({step.activation for step in steps}) != 1:
            continue
        step = Elementwise(
            concatenated([step.scale for step in steps], widths, 1.0),
            concatenated([step.shift for step in steps], widths, 0.0),
            steps[0].activation,
        )
        replace(node, insert_step(graph, node, step, source))
        count += 1
    if count:
        graph.graph.eliminate_dead_code()
    return count


def _channels(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return None if value is None else value.shape[1]
