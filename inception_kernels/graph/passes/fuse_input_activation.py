"""An activation that only separable convolutions read becomes their input activation."""

from __future__ import annotations

from torch import fx

from ..steps import Elementwise, Separable
from ._graph import residual_of, step_of


def fuse_input_activation(graph: fx.GraphModule) -> int:
    count = 0
    for node in list(graph.graph.nodes):
        step = step_of(graph, node, Elementwise)
        if step is None or step.scale is not None or step.shift is not None or residual_of(node) is not None:
            continue
        readers = [step_of(graph, user, Separable) for user in node.users]
        free = all(reader is not None and reader.input_activation == "none" for reader in readers)
        if not readers or not free or any(residual_of(user) is node for user in node.users):
            continue
        for reader in readers:
            assert reader is not None
            reader.input_activation = step.activation
        node.replace_all_uses_with(node.args[0])
        graph.graph.erase_node(node)
        count += 1
    return count
