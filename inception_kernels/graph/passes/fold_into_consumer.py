"""A scale and a shift in front of a convolution without padding move into its weight and its shift.

With padding they cannot: the zeros are added behind them. Nor does a batch norm whose mean exceeds its standard
deviation: the convolution would add up large values and take most of the sum off again.
"""

from __future__ import annotations

import copy

from torch import fx

from ..steps import Convolution, Elementwise
from ._graph import insert_step, replace, residual_of, sole_user, step_of

MOST_OFFSET = 1.0


def fold_into_consumer(graph: fx.GraphModule) -> int:
    count = 0
    for node in list(graph.graph.nodes):
        step, user = step_of(graph, node, Elementwise), sole_user(node)
        consumer = None if user is None else step_of(graph, user, Convolution)
        if step is None or user is None or consumer is None or consumer.padding != (0, 0):
            continue
        if (
            step.offset > MOST_OFFSET
            or step.activation != "none"
            or residual_of(node) is not None
            or residual_of(user) is node
        ):
            continue
        folded = copy.copy(consumer)
        folded._buffers = dict(consumer._buffers)
        weight = consumer.weight.double()
        if step.shift is not None:
            offset = (weight * step.shift[:, None, None]).sum((1, 2, 3))
            if consumer.scale is not None:
                offset = offset * consumer.scale
            folded.shift = offset if consumer.shift is None else consumer.shift + offset
        if step.scale is not None:
            folded.weight = (weight * step.scale[:, None, None]).to(consumer.weight.dtype)
        replace(user, insert_step(graph, user, folded, node.args[0], residual_of(user)))
        graph.graph.erase_node(node)
        count += 1
    return count
