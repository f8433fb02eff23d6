"""Batch norm, addition and activation move into the step that computes what they read: its epilogue does them."""

from __future__ import annotations

import copy

from torch import Tensor, fx

from ..steps import AveragePool, Convolution, Elementwise, MaxPool, Separable, Step
from ._graph import insert_step, replace, residual_of, sole_user, step_of

_PRODUCERS = (Convolution, Separable, AveragePool, MaxPool, Elementwise)  # who is asked first to add a residual


def fuse_into_producer(graph: fx.GraphModule) -> int:
    count = 0
    for node in list(graph.graph.nodes):
        step = step_of(graph, node, Elementwise)
        if step is None:
            continue
        sources = node.all_input_nodes
        fused = _fused(graph, node, step)
        if fused is None:
            continue
        replace(node, fused)
        for source in sources:
            if not source.users and source.op == "call_module":
                graph.graph.erase_node(source)
        count += 1
    return count


def _fused(graph: fx.GraphModule, node: fx.Node, step: Elementwise) -> fx.Node | None:
    residual = residual_of(node)
    if residual is None:
        return _append(graph, node, node.args[0], step, None)
    if step.scale is not None or step.shift is not None or residual is node.args[0]:
        return None
    # Either summand may be the one that a producer adds the other to.
    pairs = [(node.args[0], residual), (residual, node.args[0])]
    pairs.sort(key=lambda pair: _rank(graph, pair[0]))
    for x, other in pairs:
        fused = _append(graph, node, x, step, other)
        if fused is not None:
            return fused
    return None


def _rank(graph: fx.GraphModule, node: object) -> int:
    return next((i for i, kind in enumerate(_PRODUCERS) if step_of(graph, node, kind) is not None), len(_PRODUCERS))


def _append(graph: fx.GraphModule, node: fx.Node, x: object, step: Elementwise, residual: object) -> fx.Node | None:
    """The producer of x with this step behind it, or None where it has no room for it."""
    producer = step_of(graph, x, Step)
    if producer is None or not isinstance(producer, _PRODUCERS) or not isinstance(x, fx.Node) or sole_user(x) is None:
        return None
    own = residual_of(x)
    if producer.activation != "none":
        return None
    if own is not None and (residual is not None or step.scale is not None or step.shift is not None):
        return None
    fused = copy.copy(producer)
    fused._buffers = dict(producer._buffers)
    fused.scale, fused.shift = _compose(producer, step)
    fused.activation = step.activation
    return insert_step(graph, node, fused, x.args[0], own if residual is None else residual)


def _compose(first: Step, second: Step) -> tuple[Tensor | None, Tensor | None]:
    scale, shift = first.scale, first.shift
    if second.scale is not None:
        scale = second.scale if scale is None else scale * second.scale
        shift = None if shift is None else shift * second.scale
    if second.shift is not None:
        shift = second.shift if shift is None else shift + second.shift
    return scale, shift
