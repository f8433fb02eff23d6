"""The Hopper kernel of asymmetric_pair, executed on the host: against float64, under the checker and in several schedules."""

from __future__ import annotations

import functools
from dataclasses import replace

import host_cuda
import pytest
import torch
from cuda_tensors import dense, in_slice
from host_cuda import SCHEDULES, Host
from oracle import ACTIVATIONS
from pair_cases import Half, Problem, Shape, pair
from torch import Tensor

from inception_kernels.models.layers import distinct_pairs

OWN_CHOICE = -1
TILES = (64, 96, 128, 160, 192)

SHAPES = {
    "1x7_7x1": pair(2, 40, 9, 11, 48, 56, 7),
    "7x1_1x7": pair(2, 40, 9, 11, 48, 56, 7, columns_first=True),
    "1x3_3x1": pair(3, 16, 8, 8, 24, 40, 3),
    "lines_of_several_images": pair(5, 8, 17, 2, 16, 8, 3),
    "more_lines_than_fit": pair(1, 8, 5, 33, 8, 8, 3),
    "many_channels": pair(1, 8, 6, 5, 136, 200, 3),
    "more_steps_than_stages": pair(1, 328, 5, 4, 72, 24, 5),
    "narrow_slices": pair(1, 32, 7, 6, 96, 64, 3),
    "narrow_slices_odd": pair(2, 96, 6, 7, 32, 40, 5, columns_first=True),
    "one_line": pair(1, 8, 5, 1, 8, 8, 3),
    "one_pixel": pair(3, 16, 1, 1, 8, 24, 3),
    "lines_of_128": Shape(1, 8, 128, 3, Half(16, (1, 3), (0, 1)), Half(16, (3, 1), (1, 0))),
    "no_padding": Shape(2, 16, 9, 10, Half(24, (1, 3)), Half(16, (3, 1))),
    "longer_output": Shape(2, 16, 9, 10, Half(24, (1, 3)), Half(16, (3, 1), (4, 0))),
    "two_taps": Shape(2, 8, 7, 6, Half(8, (2, 1)), Half(16, (1, 2))),
    "square_first": Shape(1, 16, 7, 8, Half(24, (3, 3), (1, 1)), Half(16, (1, 5), (0, 2))),
    "dilated": Shape(
        2, 16, 12, 11, Half(24, (3, 2), (2, 1), dilation=(2, 3)), Half(16, (3, 1), (3, 0), dilation=(3, 1))
    ),
    "pointwise_second": Shape(1, 8, 6, 7, Half(16, (3, 1), (1, 0)), Half(8, (1, 1))),
}


@functools.cache
def host(checked: bool) -> Host:
    loaded = host_cuda.load("asymmetric_pair_sm90", checked=checked)
    loaded.context(sm=90, multiprocessors=2)
    return loaded


def arguments(problem: Problem) -> tuple[object, ...]:
    layers = []
    for layer in (problem.first, problem.second):
        packed = layer.weight.permute(0, 2, 3, 1).contiguous()  # as conv2d_pack writes multiples of 8 channels
        layers.append(layer.arguments(packed))
    return problem.x, *layers


def empty_output(problem: Problem, more: int = 0, first: int = 0) -> Tensor:
    like = problem.compute(torch.float64)
    return in_slice(torch.full_like(like, float("nan")).to(problem.x.dtype), more, first)


def forward(problem: Problem, *, on: Host, tile: int = OWN_CHOICE, y: Tensor | None = None) -> Tensor:
    y = empty_output(problem) if y is None else y
    given = arguments(problem)
    assert on.unsupported(*given, y) == ""
    on.forward(*given, y, tile)
    return y


def check(shape: Shape, dtype: str, *, on: Host, tile: int = OWN_CHOICE) -> None:
    problem = Problem.random(shape, dtype)
    on.reset_counted_kernels()
    problem.check(forward(problem, on=on, tile=tile), "y")
    assert on.counted_kernels() == f"asymmetric_pair.forward.cuda_sm90_{dtype}=1\n"


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    check(SHAPES[name], "bf16", on=host(True))


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_in_half_precision(name: str) -> None:
    check(SHAPES[name], "fp16", on=host(False))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("tile", range(len(TILES)))
def test_every_tile(tile: int, dtype: str) -> None:
    """Channels that a tile does not hold at once, in both halves, and blocks that take several tiles."""
    check(pair(3, 24, 17, 5, 200, 200, 3), dtype, on=host(dtype == "bf16"), tile=tile)


def test_many_passes() -> None:
    check(pair(1, 8, 4, 3, 8, 584, 3), "bf16", on=host(True), tile=0)


def test_tiles_are_all_tested() -> None:
    assert tuple(host(True).tiles()) == TILES


@pytest.mark.parametrize("schedule", SCHEDULES[1:], ids=str)
@pytest.mark.parametrize("name", ["1x7_7x1", "more_steps_than_stages", "many_channels", "narrow_slices_odd"])
def test_schedules(name: str, schedule: host_cuda.Schedule) -> None:
    check(SHAPES[name], "bf16", on=host(True).on(schedule))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    for activations in ((activation, "none"), ("none", activation)):
        problem = Problem.random(SHAPES["1x3_3x1"], "bf16", activations)
        problem.check(forward(problem, on=host(True)), activation)


def test_without_scale_and_shift() -> None:
    problem = Problem.random(SHAPES["narrow_slices"], "bf16")
    for layer in (problem.first, problem.second):
        layer.scale, layer.shift = torch.ones_like(layer.scale), torch.zeros_like(layer.shift)
    expected = forward(problem, on=host(True))
    given = arguments(problem)
    for layer in given[1:]:
        layer.update(scale=None, shift=None)
    y = empty_output(problem)
    host(True).forward(*given, y, OWN_CHOICE)
    assert torch.equal(y, expected)
    problem.check(y, "y")


def test_output_slices() -> None:
    problem = Problem.random(SHAPES["1x7_7x1"], "bf16")
    y = empty_output(problem, 24, 8)
    problem.check(forward(problem, on=host(True), y=y), "slice")
    assert y._base[:, :8].isnan().all() and y._base[:, 8 + y.shape[1] :].isnan().all()


def test_input_slices() -> None:
    problem = Problem.random(SHAPES["7x1_1x7"], "bf16")
    problem.x = in_slice(problem.x, 24, 16)
    problem.check(forward(problem, on=host(True)), "slice")


def test_rows_of_the_output_need_not_follow_each_other() -> None:
    problem = Problem.random(SHAPES["1x3_3x1"], "bf16")
    N, K, P, Q = problem.compute(torch.float32).shape
    y = dense(torch.full((N, K, P + 1, Q + 2), float("nan"), dtype=torch.bfloat16))[:, :, 1:, 1:-1]
    problem.check(forward(problem, on=host(True), y=y), "window")
    assert y._base[:, :, 0].isnan().all() and y._base[:, :, :, -1].isnan().all()


@pytest.mark.parametrize("name", ["1x7_7x1", "lines_of_several_images", "narrow_slices_odd"])
def test_nan_and_infinity_stay_inside_their_windows(name: str) -> None:
    problem = Problem.random(SHAPES[name], "bf16", ("none", "none"))
    problem.x[1, 5, 4, 1] = float("nan")
    problem.x[0, 7, 2, 0] = float("inf")
    y, expected = forward(problem, on=host(True)), problem.compute(torch.float64)
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert not y.isfinite().all()


def test_images_do_not_depend_on_their_batch() -> None:
    problem = Problem.random(replace(SHAPES["1x7_7x1"], N=3), "bf16")
    together = forward(problem, on=host(True))
    for tile in (0, 4):
        alone = replace(problem, x=problem.x[1:2])
        assert torch.equal(forward(alone, on=host(True), tile=tile), together[1:2])


def test_empty_batch() -> None:
    problem = Problem.random(replace(SHAPES["1x3_3x1"], N=0), "bf16")
    assert host(True).unsupported(*arguments(problem), empty_output(problem)) == ""


def odd_pixels(problem: Problem) -> Problem:
    return replace(problem, x=in_slice(problem.x, 5, 3))


UNSUPPORTED = {
    "channels are not multiples of 8": lambda: Problem.random(pair(1, 8, 7, 5, 21, 16, 5), "bf16"),
    "the Hopper kernel is for 16-bit types": lambda: Problem.random(SHAPES["1x3_3x1"], "fp32"),
    "the second window runs along both axes": lambda: Problem.random(
        Shape(1, 8, 6, 5, Half(8, (1, 3), (0, 1)), Half(8, (3, 3), (1, 1))), "bf16"
    ),
    "strides are not 1": lambda: Problem.random(
        Shape(1, 8, 6, 6, Half(8, (1, 3), (0, 1), (1, 2)), Half(8, (3, 1), (1, 0))), "bf16"
    ),
    "lines of more than 128 pixels": lambda: Problem.random(
        Shape(1, 8, 129, 2, Half(8, (1, 1)), Half(8, (3, 1), (1, 0))), "bf16"
    ),
    "an intermediate of too many channels for shared memory": lambda: Problem.random(
        pair(1, 8, 4, 3, 1024, 8, 3), "bf16"
    ),
    "pixels of x do not begin at multiples of 16 bytes": lambda: odd_pixels(
        Problem.random(SHAPES["1x3_3x1"], "bf16")
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_reasons(reason: str) -> None:
    problem = UNSUPPORTED[reason]()
    assert host(True).unsupported(*arguments(problem), empty_output(problem)) == reason


def test_a_second_stride_is_a_reason() -> None:
    problem = Problem.random(Shape(1, 8, 8, 6, Half(8, (1, 3), (0, 1)), Half(8, (3, 1), (1, 0), (2, 1))), "bf16")
    assert host(True).unsupported(*arguments(problem), empty_output(problem)) == "strides are not 1"


def test_reasons_of_output_and_vectors() -> None:
    problem = Problem.random(SHAPES["1x3_3x1"], "bf16")
    given, y = arguments(problem), empty_output(problem)
    assert host(True).unsupported(*given, empty_output(problem, 5, 3)) == (
        "pixels of y do not begin at multiples of 16 bytes"
    )
    scale = torch.ones(problem.first.scale.numel() + 1)[1:]
    assert host(True).unsupported(given[0], dict(given[1], scale=scale), given[2], y) == (
        "weights, scale or shift do not begin at a multiple of 16 bytes"
    )
    host(True).context(sm=80, multiprocessors=2)
    try:
        assert host(True).unsupported(*given, y) == "the Hopper kernel needs compute capability 9.0"
    finally:
        host(True).context(sm=90, multiprocessors=2)


LAYER_DTYPES = ("bf16", "fp16")
PAIRS = {str(each): each for each in distinct_pairs("inception_v3")}


@pytest.mark.parametrize("name", PAIRS)
def test_layers_of_inception_v3(name: str, layer_dtype: str) -> None:
    spec = PAIRS[name]

    def half(layer) -> Half:
        return Half(layer.out_channels, layer.kernel_size, layer.padding, layer.stride)

    shape = Shape(2, spec.first.in_channels, spec.first.height, spec.first.width, half(spec.first), half(spec.second))
    problem = Problem.random(shape, layer_dtype, (spec.first.activation, spec.second.activation))
    problem.check(forward(problem, on=host(True)), name)
