"""Places of values: concatenations in place, no two live values in one place, regions in order."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from helpers import randomize_batch_norm
from torch import fx

from inception_kernels import models
from inception_kernels.graph.capture import capture
from inception_kernels.graph.layout import CACHE_BYTES, Schedule, schedule
from inception_kernels.graph.partition import partition
from inception_kernels.graph.passes import apply_passes
from inception_kernels.graph.passes._graph import step_of
from inception_kernels.graph.steps import Concatenate, Slice


def scheduled(
    model: torch.nn.Module, size: int, batch: int = 1, cache_bytes: int = CACHE_BYTES
) -> tuple[fx.GraphModule, Schedule]:
    x = torch.randn(batch, 3, size, size)
    graph = capture(randomize_batch_norm(model.eval()), (x,), {}).graph
    apply_passes(graph)
    (segment, *_) = partition(graph)
    inputs = {segment.inputs[0]: tuple(x.shape)}
    return graph, schedule(graph, segment.nodes, inputs, segment.outputs, frozenset(), 4, cache_bytes)


def elements(plan: Schedule, value: fx.Node) -> set[tuple[int, int]]:
    """The channels of its root that a value covers."""
    place = plan.places[value]
    count = plan.shapes[value][1]
    return {(id(place.root), channel) for channel in range(place.channel, place.channel + count)}


class Swapped(torch.nn.Module):
    """The channels of an image in another order, and one of them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.one = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(1, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red, green, blue = (x[:, i].unsqueeze(1) for i in range(3))
        return self.all(torch.cat([blue, green, red], 1)) + self.one(green)


def test_channels_of_an_input_are_read_after_its_copy():
    """The copy has adjacent channels, and is a step like any other."""
    x = torch.randn(1, 3, 8, 8)
    graph = capture(Swapped().eval(), (x,), {}).graph
    (segment,) = partition(graph)
    image = segment.inputs[0]
    plan = schedule(graph, segment.nodes, {image: tuple(x.shape)}, segment.outputs, frozenset([image]), 4)
    (copied,) = (step for step in plan.steps if step.x is image)
    readers = [step for step in plan.steps if plan.places[step.x].root is copied.y]
    assert len(readers) == 4
    assert all(step.region > copied.region for step in readers)


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 139), ("xception", 71)])
def test_networks(name, size):
    _, plan = scheduled(models.load(name), size)
    assert not any(step.copies for step in plan.steps), "every branch is written into its slice"

    # A value is read only after the regions that write it, or a part of it.
    written: dict[tuple[int, int], int] = {}
    for step in plan.steps:
        for element in elements(plan, step.y):
            assert element not in written, "two steps write one channel"
            written[element] = step.region
    for step in plan.steps:
        for value in filter(None, (step.x, step.residual)):
            if value not in plan.inputs:
                assert all(written[element] < step.region for element in elements(plan, value))

    # Values whose lifetimes overlap do not overlap in the arena.
    lives: dict[fx.Node, list[int]] = {}
    for step in plan.steps:
        for value in filter(None, (step.x, step.residual, step.y)):
            lives.setdefault(plan.places[value].root, []).append(step.region)
    roots = [root for root in lives if root in plan.offsets]
    for i, a in enumerate(roots):
        for b in roots[:i]:
            if max(min(lives[a]), min(lives[b])) <= min(max(lives[a]), max(lives[b])):
                sizes = [4 * torch.Size(plan.shapes[root]).numel() for root in (a, b)]
                begins = [plan.offsets[root] for root in (a, b)]
                assert begins[0] + sizes[0] <= begins[1] or begins[1] + sizes[1] <= begins[0]
    total = sum(4 * torch.Size(plan.shapes[root]).numel() for root in roots)
    assert plan.arena_bytes < total / 3, "places are reused"
    assert [step.region for step in plan.steps] == sorted(step.region for step in plan.steps)


@pytest.mark.parametrize(("batch", "kilobytes", "leading"), [(3, 1 << 20, 0), (1, 0, 0), (3, 1000, 1), (3, 0, 3)])
def test_image_by_image(batch, kilobytes, leading):
    """Up to the last value that is larger, and nothing waits in a place that the next image is given."""
    _, plan = scheduled(models.load("xception"), 71, batch, kilobytes << 10)
    regions = plan.steps[-1].region + 1
    large = [s for s in plan.steps for v in (s.x, s.y) if 4 * torch.Size(plan.shapes[v]).numel() > kilobytes << 10]
    expected = max((step.region for step in large), default=-1) + 1 if batch > 1 else 0
    assert plan.leading == expected
    assert (expected == regions) == (leading == 3)
    assert (expected == 0) == (leading == 0)

    order = plan.order()
    assert len(order) == len(plan.steps) + (batch - 1) * sum(step.region < expected for step in plan.steps)
    images = [(step.region, image) for step, image, _ in order]
    assert images == sorted(images, key=lambda run: (run[1] is None, run[1] or 0, run[0]))
    begins = [begin for _, _, begin in order]
    assert begins == [True, *(a != b for a, b in pairwise(images))]

    # A memory that remembers whose each number is.
    memory, names = torch.full((plan.arena_bytes // 4,), -1), {}
    for step, image, _ in order:
        for value in filter(None, (step.x, step.residual, step.y)):
            root = plan.places[value].root
            if root not in plan.offsets:
                continue
            N, *shape = plan.shapes[root]
            size, own = torch.Size(shape).numel(), root in plan.one_image
            begin = plan.offsets[root] // 4 + (0 if image is None or own else image * size)
            place = memory[begin : begin + size * (N if image is None else 1)]
            name = names.setdefault((root, image if own else None), len(names))
            if value is step.y:
                place.fill_(name)
            assert (place == name).all(), "what is read was overwritten, or never written"


class Branching(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(3, 5, 1)

    def forward(self, x: torch.Tensor):
        return self.function(self.a(x), self.b(x), x)


@pytest.mark.parametrize(
    ("function", "copies"),
    [
        (lambda a, b, x: torch.cat([a, b], 1), 0),
        (lambda a, b, x: torch.cat([torch.cat([a, b], 1), b.relu()], 1), 0),  # nested
        (lambda a, b, x: torch.cat([a, a], 1), 1),  # twice in one
        (lambda a, b, x: torch.cat([torch.cat([a, b], 1).relu(), b], 1), 1),  # in two
        (lambda a, b, x: torch.cat([a, x], 1), 1),  # an input is where it is
        (lambda a, b, x: (torch.cat([a, b], 1), a), 1),  # an output of its own
    ],
)
def test_what_is_copied_into_a_concatenation(function, copies):
    model = Branching(function)
    _, plan = scheduled(model, 5)
    assert sum(step.copies for step in plan.steps) == copies


def test_concatenations_and_slices_are_no_steps():
    graph, plan = scheduled(models.load("inception_v3"), 139)
    views = [node for node in graph.graph.nodes if step_of(graph, node, Concatenate) or step_of(graph, node, Slice)]
    assert len(views) > 30
    assert not {step.y for step in plan.steps} & set(views)
