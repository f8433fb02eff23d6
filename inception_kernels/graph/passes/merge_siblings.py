"""1 x 1 convolutions of one tensor become one with all their outputs, of which each reader gets its channels.

Only those whose result does not go straight into a concatenation, which they write in place: a merged output cannot.
"""

from __future__ import annotations

import torch
from torch import fx

from ..steps import Convolution, Slice, Step, concatenated
from ._graph import insert_step, replace, residual_of, step_of


def merge_siblings(graph: fx.GraphModule) -> int:
    count = 0
    for source in list(graph.graph.nodes):
        by_activation: dict[str, list[fx.Node]] = {}
        for user in source.users:
            step = step_of(graph, user, Convolution)
            if step is not None and _mergeable(graph, user, step):
                by_activation.setdefault(step.activation, []).append(user)
        for siblings in by_activation.values():
            if len(siblings) > 1:
                _merge(graph, source, siblings)
                count += 1
    return count


def _mergeable(graph: fx.GraphModule, node: fx.Node, step: Convolution) -> bool:
    read_by_steps = all(step_of(graph, user, Step) is not None for user in node.users)
    return step.is_pointwise and residual_of(node) is None and read_by_steps


def _merge(graph: fx.GraphModule, source: fx.Node, siblings: list[fx.Node]) -> None:
    steps = [step for node in siblings if (step := step_of(graph, node, Convolution)) is not None]
    widths = [step.weight.shape[0] for step in steps]
    merged = Convolution(
        torch.cat([step.weight for step in steps]),
        scale=concatenated([step.scale for step in steps], widths, 1.0),
        shift=concatenated([step.shift for step in steps], widths, 0.0),
        activation=steps[0].activation,
    )
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    first = min(siblings, key=order.__getitem__)
    whole = insert_step(graph, first, merged, source)
    parts, begin = [], 0
    for width in widths:
        parts.append(insert_step(graph, first, Slice(begin, width), whole))
        begin += width
    for node, part in zip(siblings, parts, strict=True):
        replace(node, part)
