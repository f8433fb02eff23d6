"""depthwise -> [scale, shift, activation] -> 1 x 1 becomes one separable convolution."""

from __future__ import annotations

from torch import fx

from ..steps import Convolution, Depthwise, Elementwise, Separable
from ._graph import insert_step, replace, residual_of, sole_user, step_of


def fuse_separable(graph: fx.GraphModule) -> int:
    count = 0
    for node in list(graph.graph.nodes):
        depthwise = step_of(graph, node, Depthwise)
        if depthwise is None:
            continue
        weight, bias, activation = depthwise.weight, depthwise.shift, "none"
        chain, user = [node], sole_user(node)
        while user is not None and (middle := step_of(graph, user, Elementwise)) is not None:
            if activation != "none" or residual_of(user) is not None:
                break
            if middle.scale is not None:  # into the weight, as it is linear
                weight = (weight.double() * middle.scale[:, None, None, None]).to(weight.dtype)
                bias = None if bias is None else bias * middle.scale
            if middle.shift is not None:
                bias = middle.shift if bias is None else bias + middle.shift
            activation = middle.activation
            chain.append(user)
            user = sole_user(user)
        point = None if user is None else step_of(graph, user, Convolution)
        if user is None or point is None or not point.is_pointwise:
            continue
        separable = Separable(
            weight, bias, point.weight, depthwise.stride, depthwise.padding, depthwise.dilation,
            activation, point.scale, point.shift, point.activation,
        )  # fmt: skip
        replace(user, insert_step(graph, user, separable, node.args[0], residual_of(user)))
        for taken in reversed(chain):
            graph.graph.erase_node(taken)
        count += 1
    return count
