"""Where the values of a graph live: in the arena, in an input or in an output, and since when and how long.

A concatenation is a place, not a step: its inputs are written where they belong, and copied only where they cannot be.
The arena is planned for one set of input shapes; places are reused as soon as nobody reads them any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from .passes._graph import residual_of, step_of
from .steps import Concatenate, Elementwise, Shape, Slice, Step

ALIGNMENT = 64  # bytes
# A batch whose values are larger goes through the first steps image by image: one image's values stay in the last
# level of the cache, a batch's do not.
CACHE_BYTES = 32 << 20


@dataclass(frozen=True)
class Place:
    """Channels [channel, ...) of the tensor that a root value fills."""

    root: fx.Node
    channel: int


@dataclass
class ScheduledStep:
    step: Step
    x: fx.Node
    residual: fx.Node | None
    y: fx.Node  # the value whose place it writes
    copies: bool = False  # writes x into its slice of y
    channel: int = 0  # of y, where it copies
    region: int = 0


@dataclass
class Schedule:
    """Steps in the order of their regions; the steps of one region do not read what another of them writes."""

    steps: list[ScheduledStep]
    places: dict[fx.Node, Place]
    shapes: dict[fx.Node, Shape]
    inputs: list[fx.Node]
    outputs: list[fx.Node]
    offsets: dict[fx.Node, int] = field(default_factory=dict)  # of roots in the arena, in bytes
    arena_bytes: int = 0
    leading: int = 0  # so many regions are run for one image after the other
    one_image: set[fx.Node] = field(default_factory=set)  # roots in the arena that hold one image at a time

    def order(self) -> list[tuple[ScheduledStep, int | None, bool]]:
        """What runs: a step, the image it is run for (None: all), and whether it begins a region."""
        leading = [step for step in self.steps if step.region < self.leading]
        batch = self.shapes[self.inputs[0]][0] if leading else 0
        runs: list[tuple[ScheduledStep, int | None]] = [(step, n) for n in range(batch) for step in leading]
        runs += [(step, None) for step in self.steps[len(leading) :]]
        before = [None, *((step.region, n) for step, n in runs)]
        return [(step, n, (step.region, n) != last) for (step, n), last in zip(runs, before, strict=False)]


def schedule(
    graph: fx.GraphModule,
    nodes: list[fx.Node],
    inputs: dict[fx.Node, Shape],
    outputs: list[fx.Node],
    layout_copies: frozenset[fx.Node],
    element_bytes: int,
    cache_bytes: int = CACHE_BYTES,
) -> Schedule:
    """Args:
        nodes: in topological order, calls of steps, concatenations and slices.
        inputs: what they read of others, with its shape.
        outputs: what others read of them; none of them a slice or an input.
        layout_copies: inputs whose channels are not adjacent.
    """  # fmt: skip
    shapes: dict[fx.Node, Shape] = dict(inputs)
    for node in nodes:
        module: Any = graph.get_submodule(str(node.target))
        count = None if isinstance(module, Concatenate) else 1  # a residual is of the output's shape
        shapes[node] = module.output_shape(*(shapes[value] for value in _values(node)[:count]))
    result = Schedule([], _places(graph, nodes, shapes, outputs), shapes, list(inputs), outputs)
    copies = _steps(graph, nodes, result, layout_copies)
    _regions(graph, result, copies)
    _leading(result, element_bytes, cache_bytes)
    _arena(result, element_bytes)
    return result


def _values(node: fx.Node) -> list[fx.Node]:
    return [value for value in node.args if isinstance(value, fx.Node)]


def _places(
    graph: fx.GraphModule, nodes: list[fx.Node], shapes: dict[fx.Node, Shape], outputs: list[fx.Node]
) -> dict[fx.Node, Place]:
    direct: dict[fx.Node, tuple[fx.Node, int]] = {}  # value -> the one it is a part of, and from which channel
    for node in reversed(nodes):
        if step_of(graph, node, Slice) is not None:
            direct[node] = (node.args[0], step_of(graph, node, Slice).begin)  # type: ignore[union-attr, assignment]
        elif step_of(graph, node, Concatenate) is not None:
            channel = 0
            for value in _values(node):
                movable = step_of(graph, value, Step) is not None or step_of(graph, value, Concatenate) is not None
                if movable and value in nodes and value not in direct and value not in outputs:
                    direct[value] = (node, channel)
                channel += shapes[value][1]
    places: dict[fx.Node, Place] = {}
    for node in shapes:
        root, channel = node, 0
        while root in direct:
            root, more = direct[root]
            channel += more
        places[node] = Place(root, channel)
    return places


def _steps(
    graph: fx.GraphModule, nodes: list[fx.Node], result: Schedule, layout_copies: frozenset[fx.Node]
) -> dict[fx.Node, fx.Node]:
    """Returns the copy that is read in place of each input among `layout_copies`."""
    sources: dict[fx.Node, fx.Node] = {}
    copies = fx.Graph()
    for value in layout_copies:  # a value of its own: the input with adjacent channels
        copy = copies.placeholder(f"{value.name}_channels_last")
        result.shapes[copy] = result.shapes[value]
        for node, place in result.places.items():  # views of the input are views of its copy
            if place.root is value and node is not value:
                result.places[node] = Place(copy, place.channel)
        result.places[copy] = Place(copy, 0)
        result.steps.append(ScheduledStep(Elementwise(), value, None, copy))
        sources[value] = copy
    for node in nodes:
        step = step_of(graph, node, Step)
        if step is not None:
            x, residual = node.args[0], residual_of(node)
            assert isinstance(x, fx.Node)
            result.steps.append(
                ScheduledStep(step, sources.get(x, x), sources.get(residual, residual) if residual else None, node)
            )
        elif step_of(graph, node, Concatenate) is not None:
            channel, own = 0, result.places[node]
            for value in _values(node):
                if result.places[value] != Place(own.root, own.channel + channel):
                    copy_step = ScheduledStep(Elementwise(), sources.get(value, value), None, node, True, channel)
                    result.steps.append(copy_step)
                channel += result.shapes[value][1]
    return sources


def _regions(graph: fx.GraphModule, result: Schedule, copies: dict[fx.Node, fx.Node]) -> None:
    """As early as what it reads allows."""
    ready: dict[fx.Node, int] = {}  # value -> the first region that may read it

    def first_region(value: fx.Node | None) -> int:
        return 0 if value is None else ready.get(value, 0)

    by_value: dict[fx.Node, list[ScheduledStep]] = {}
    for step in result.steps:
        by_value.setdefault(step.y, []).append(step)
    pending = {id(step) for step in result.steps}

    def visit(value: fx.Node) -> int:
        """When a value is complete: its own steps, the parts that were written in place, and what it is a view of."""
        if value in ready:
            return ready[value]
        ready[value] = 0
        region = 0
        for step in by_value.get(value, ()):
            for source in (step.x, step.residual):
                if source is not None:
                    region_of_source = visit(source)
                    step.region = max(step.region, region_of_source)
            region = max(region, step.region + 1)
            pending.discard(id(step))
        if value.op == "call_module" and value in result.shapes and value not in result.inputs:
            module = graph.get_submodule(str(value.target))
            if isinstance(module, Concatenate | Slice):
                for part in value.all_input_nodes:
                    region = max(region, visit(copies.get(part, part)))
        ready[value] = region
        return region

    for step in result.steps:
        visit(step.y)
    assert not pending
    result.steps.sort(key=lambda step: step.region)


def _roots(result: Schedule, step: ScheduledStep) -> list[fx.Node]:
    return [result.places[value].root for value in (step.x, step.residual, step.y) if value is not None]


def _leading(result: Schedule, element_bytes: int, cache_bytes: int) -> None:
    """Up to the last region with a value that is too large."""
    batches = {result.shapes[value][0] for value in result.inputs}
    if len(batches) != 1 or batches == {1}:
        return
    for step in result.steps:
        if any(_bytes(result.shapes[root], element_bytes) > cache_bytes for root in _roots(result, step)):
            result.leading = step.region + 1


def _arena(result: Schedule, element_bytes: int) -> None:
    """First fit over the lifetimes, which count in regions."""
    first: dict[fx.Node, int] = {}
    last: dict[fx.Node, int] = {}
    for step in result.steps:
        for root in _roots(result, step):
            if root in result.inputs or root in result.outputs:
                continue
            first[root] = min(first.get(root, step.region), step.region)
            last[root] = max(last.get(root, step.region), step.region)
    for root in first:
        if last[root] < result.leading:
            result.one_image.add(root)
        elif first[root] < result.leading:
            first[root] = 0  # the next image begins anew while this one's result waits

    def size_of(root: fx.Node) -> int:
        shape = result.shapes[root]
        return _bytes((1, *shape[1:]) if root in result.one_image else shape, element_bytes)

    placed: list[tuple[int, int, fx.Node]] = []  # begin, end, root
    for root in sorted(first, key=lambda root: (first[root], -size_of(root))):
        size = size_of(root)
        busy = sorted(
            (begin, end) for begin, end, other in placed if first[other] <= last[root] and first[root] <= last[other]
        )
        offset = 0
        for begin, end in busy:
            if offset + size <= begin:
                break
            offset = max(offset, end)
        placed.append((offset, offset + size, root))
        result.offsets[root] = offset
        result.arena_bytes = max(result.arena_bytes, offset + size)


def _bytes(shape: Shape, element_bytes: int) -> int:
    size = shape[0] * shape[1] * shape[2] * shape[3] * element_bytes
    return -(-size // ALIGNMENT) * ALIGNMENT
