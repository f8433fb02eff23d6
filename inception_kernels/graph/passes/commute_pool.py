"""average pool -> 1 x 1 becomes 1 x 1 -> average pool where that makes the pool narrower.

Both are linear, the pool in every channel alike and the 1 x 1 in every pixel alike, so the order does not matter,
whatever the pool's window, padding and divisor: padding adds zeros, which a 1 x 1 without a shift leaves zero, and a
divisor that differs between pixels does not differ between channels. The shift, the residual and the activation follow
the pool.
"""

from __future__ import annotations

import copy

from torch import fx

from ..steps import AveragePool, Convolution
from ._graph import insert_step, replace, residual_of, sole_user, step_of


def commute_pool(graph: fx.GraphModule) -> int:
    count = 0
    for node in list(graph.graph.nodes):
        pool, user = step_of(graph, node, AveragePool), sole_user(node)
        point = None if user is None else step_of(graph, user, Convolution)
        if pool is None or pool.window is None or user is None or point is None or not point.is_pointwise:
            continue
        plain = pool.scale is None and pool.shift is None and pool.activation == "none" and residual_of(node) is None
        K, C = point.weight.shape[:2]
        # A stride makes the 1 x 1 compute pixels that the pool drops.
        if not plain or K >= C or pool.stride != (1, 1) or residual_of(user) is node:
            continue
        product = Convolution(point.weight, scale=point.scale)
        narrow = copy.copy(pool)
        narrow._buffers = dict(pool._buffers)
        narrow.shift, narrow.activation = point.shift, point.activation
        first = insert_step(graph, user, product, node.args[0])
        replace(user, insert_step(graph, user, narrow, first, residual_of(user)))
        graph.graph.erase_node(node)
        count += 1
    return count
