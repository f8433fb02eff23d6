"""Rewritings of a captured graph, each exact but for rounding. A pass changes the graph and says in how many places."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from .commute_pool import commute_pool
from .fold_into_consumer import fold_into_consumer
from .fuse_input_activation import fuse_input_activation
from .fuse_into_producer import fuse_into_producer
from .fuse_separable import fuse_separable
from .gather_channels import gather_channels
from .merge_siblings import merge_siblings

# In this order: a 1 x 1 that a pool was moved behind, and what a separable convolution took in, are seen by the next.
PASSES: tuple[Callable[[fx.GraphModule], int], ...] = (
    fuse_separable,
    fuse_into_producer,
    gather_channels,
    fold_into_consumer,
    fuse_input_activation,
    commute_pool,
    merge_siblings,
)


def apply_passes(graph: fx.GraphModule) -> dict[str, int]:
    """Runs all of them; name of the pass -> how many places it changed."""
    changed = {apply.__name__: apply(graph) for apply in PASSES}
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return changed
