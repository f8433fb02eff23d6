"""The Hopper kernel of separable_conv2d, executed on the host: against float64, under the checker, in several schedules."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import host_cuda
import oracle
import pytest
import torch
from helpers import assert_as_accurate
from host_cuda import SCHEDULES, Host
from torch import Tensor

from inception_kernels.models.layers import distinct_layers

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TILES = {"19 x 256": 0, "19 x 128": 1, "10 x 256": 2}
OWN_CHOICE = -1
MAX_CLUSTER = 3


@dataclass(frozen=True)
class Case:
    """One call. `tile` and `cluster` as the kernel is told, or its own choice; `spare` channels lie beside those of x,
    y and the residual in memory."""

    sizes: tuple[int, int, int, int]  # N, C, H, W
    K: int
    tile: int = OWN_CHOICE
    cluster: int = 1
    padding: tuple[int, int] = (1, 1)
    activations: tuple[str, str, str] = ("relu", "none", "none")
    bias: bool = False  # of the depthwise part
    vectors: bool = True  # scale and shift
    residual: bool = False
    spare: int = 0
    multiprocessors: int = 3

    @property
    def output_sizes(self) -> tuple[int, int, int, int]:
        n, _, h, w = self.sizes
        return n, self.K, h + 2 * self.padding[0] - 2, w + 2 * self.padding[1] - 2


# Each tile alone and in clusters: more chunks than stages, more items than clusters, ragged in pixels and channels.
CHECKED = {
    "19 x 256, alone": Case((1, 200, 12, 21), 264, TILES["19 x 256"], multiprocessors=1, residual=True),
    "19 x 256, pair": Case((1, 328, 11, 7), 520, TILES["19 x 256"], 2, multiprocessors=2),
    "19 x 256, three": Case(
        (1, 456, 3, 20), 520, TILES["19 x 256"], 3, activations=("none", "relu", "relu6"), bias=True
    ),
    "19 x 128, alone": Case((3, 72, 4, 5), 136, TILES["19 x 128"], multiprocessors=2, vectors=False),
    "19 x 128, three": Case((2, 392, 2, 3), 264, TILES["19 x 128"], 3),
    "10 x 256, alone": Case((2, 136, 10, 10), 40, TILES["10 x 256"], multiprocessors=1, padding=(0, 2)),
    "10 x 256, pair": Case((1, 648, 3, 11), 264, TILES["10 x 256"], 2, multiprocessors=2, residual=True, spare=8),
    "10 x 256, three": Case((3, 200, 2, 2), 776, TILES["10 x 256"], 3, activations=("none", "none", "relu")),
}

SHAPES = {
    "one pixel": Case((3, 24, 1, 1), 8),
    "one row": Case((1, 64, 1, 60), 72),
    "one column": Case((1, 64, 60, 1), 72),
    "eight channels": Case((2, 8, 9, 11), 8),
    "half a chunk": Case((2, 96, 9, 11), 136),
    "an odd half": Case((1, 168, 19, 20), 72),
    "no padding": Case((2, 72, 12, 23), 136, padding=(0, 0)),
    "padding wider than the window": Case((1, 72, 4, 5), 136, padding=(4, 3)),
    "window larger than the image": Case((1, 40, 1, 2), 24, padding=(1, 1)),
    "batch 3": Case((3, 72, 11, 10), 256, bias=True),
    "bias without vectors": Case((1, 72, 5, 10), 24, bias=True, vectors=False),
    "slices": Case((2, 72, 11, 21), 136, residual=True, spare=24),
    "no vectors": Case((2, 72, 11, 21), 136, vectors=False, activations=("none", "none", "none")),
    "many clusters": Case((2, 72, 31, 40), 520, multiprocessors=132),
}

LARGE = {
    "128 -> 128 at 147": Case((1, 128, 12, 147), 128, residual=True),
    "256 -> 256 at 74": Case((1, 256, 11, 74), 256),
    "728 -> 728 at 19": Case((1, 728, 19, 19), 728, residual=True, multiprocessors=6),
    "728 -> 1024 at 19": Case((1, 728, 19, 19), 1024, multiprocessors=12),
    "1024 -> 1536 at 10": Case((1, 1024, 10, 10), 1536, activations=("none", "none", "relu"), multiprocessors=12),
    "1536 -> 2048 at 10": Case((1, 1536, 10, 10), 2048, activations=("none", "none", "relu"), multiprocessors=6),
}


@functools.cache
def load(checked: bool) -> Host:
    return host_cuda.load("separable_conv2d_sm90", checked=checked, also=("batch_norm",))


def channels_last(tensor: Tensor, spare: int = 0) -> Tensor:
    """The same values, channels adjacent, in a memory with `spare` more channels."""
    n, c, h, w = tensor.shape
    wide = torch.full((n, h, w, c + spare), float("nan"), dtype=tensor.dtype)
    wide[..., :c] = tensor.permute(0, 2, 3, 1)
    return wide[..., :c].permute(0, 3, 1, 2)


@dataclass
class Problem:
    case: Case
    x: Tensor
    depthwise: Tensor  # [C, 1, 3, 3]
    pointwise: Tensor  # [K, C, 1, 1]
    depthwise_bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    residual: Tensor | None
    y: Tensor

    def call(self) -> dict[str, object]:
        before, mid, after = self.case.activations
        c = self.case.sizes[1]
        return {
            "x": self.x, "depthwise": self.depthwise.reshape(c, 9).t().contiguous(),
            "pointwise": self.pointwise.reshape(-1, c), "depthwise_bias": self.depthwise_bias, "scale": self.scale,
            "shift": self.shift, "residual": self.residual, "y": self.y, "input_activation": before,
            "mid_activation": mid, "activation": after, "window": (3, 3), "stride": (1, 1),
            "padding": self.case.padding, "dilation": (1, 1),
        }  # fmt: skip

    def evaluate(self, dtype: torch.dtype) -> Tensor:
        def cast(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        k = self.case.K
        norm = (None, None, None, None)
        if self.scale is not None:
            norm = (cast(self.scale), cast(self.shift), torch.zeros(k, dtype=dtype), torch.ones(k, dtype=dtype))
        before, mid, after = self.case.activations
        return oracle.separable_conv2d(
            self.x.to(dtype), self.depthwise.to(dtype), self.pointwise.to(dtype), *norm, cast(self.residual),
            1, self.case.padding, 1, cast(self.depthwise_bias),
            input_activation=before, mid_activation=mid, activation=after, eps=oracle.NO_EPS,
        )  # fmt: skip

    def check(self) -> None:
        exact, baseline = self.evaluate(torch.float64), self.evaluate(self.y.dtype)
        oracle.assert_as_accurate_as_torch(self.y, exact, [baseline], name=repr(self.case))


def make_problem(case: Case, dtype: torch.dtype = torch.bfloat16) -> Problem:
    generator = torch.Generator().manual_seed(len(repr(case)))

    def random(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*sizes, generator=generator) * scale).to(dtype)

    c = case.sizes[1]
    x = channels_last(random(*case.sizes), case.spare)
    depthwise, pointwise = random(c, 1, 3, 3, scale=1 / 3), random(case.K, c, 1, 1, scale=c**-0.5)
    bias, scale, shift = random(c).float() * 0.3, random(case.K).float() * 0.2 + 1, random(case.K).float() * 0.3
    residual = channels_last(random(*case.output_sizes), case.spare) if case.residual else None
    y = channels_last(torch.full(case.output_sizes, float("nan"), dtype=dtype), case.spare)
    return Problem(
        case, x, depthwise, pointwise, bias if case.bias else None,
        scale if case.vectors else None, shift if case.vectors else None, residual, y,
    )  # fmt: skip


def run(problem: Problem, host: Host) -> Tensor:
    case = problem.case
    host.context(sm=90, multiprocessors=case.multiprocessors)
    assert host.unsupported(problem.call()) == ""
    if case.tile == OWN_CHOICE:
        host.forward(problem.call())
    else:
        host.forward_tiled(problem.call(), case.tile, case.cluster)
    return problem.y


def test_tiles_are_those_of_the_cases() -> None:
    assert load(checked=False).tiles() == [tuple(map(int, name.split(" x "))) for name in TILES]


@pytest.mark.parametrize(
    ("sizes", "K", "tile", "cluster"),
    [
        ((256, 128, 147, 147), 128, "19 x 128", 1),
        ((256, 256, 74, 74), 256, "19 x 256", 1),
        ((256, 728, 19, 19), 728, "19 x 256", 3),
        ((256, 728, 19, 19), 1024, "19 x 256", 2),
        ((256, 1024, 10, 10), 1536, "10 x 256", 3),
        ((256, 1536, 10, 10), 2048, "10 x 256", 2),
    ],
    ids=str,
)
def test_choice_for_the_layers_of_xception(sizes: tuple[int, int, int, int], K: int, tile: str, cluster: int) -> None:
    host = load(checked=False)
    host.context(sm=90, multiprocessors=132)
    n, c, h, w = sizes
    one = torch.empty(max(c, K), dtype=torch.bfloat16)
    call = make_problem(Case((1, c, 1, 1), K)).call()
    call["x"] = one.as_strided((n, c, h, w), (0, 1, 0, 0))
    call["y"] = one.as_strided((n, K, h, w), (0, 1, 0, 0))
    assert tuple(host.choice(call)) == (TILES[tile], cluster)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [(name, schedule) for name, case in CHECKED.items() for schedule in SCHEDULES[: 4 if case.cluster == 3 else 2]],
    ids=str,
)
def test_checker_is_silent(name: str, schedule: host_cuda.Schedule) -> None:
    problem = make_problem(CHECKED[name])
    run(problem, load(checked=True).on(schedule))
    problem.check()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(case: Case, dtype: torch.dtype) -> None:
    problem = make_problem(case, dtype)
    run(problem, load(checked=False))
    problem.check()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE.keys())
def test_large_shapes(case: Case, dtype: torch.dtype) -> None:
    problem = make_problem(case, dtype)
    run(problem, load(checked=False))
    problem.check()


LAYER_DTYPES = tuple(DTYPES)
LAYERS = {
    str(layer): Case(
        (1, layer.in_channels, layer.height, layer.width), layer.out_channels, padding=layer.padding,
        activations=(layer.input_activation, "none", layer.activation), residual=layer.adds_residual,
        multiprocessors=132,
    )
    for layer in distinct_layers("xception")
    if layer.operator == "separable_conv2d" and layer.stride == (1, 1)
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_the_networks(name: str, layer_dtype: str) -> None:
    problem = make_problem(LAYERS[name], DTYPES[layer_dtype])
    run(problem, load(checked=True))
    problem.check()


def test_statistics_of_the_networks_layers(some_layer: str, layer_dtype: str) -> None:
    case = replace(LAYERS[some_layer], residual=False, activations=("relu", "none", "none"))
    check_statistics(case, DTYPES[layer_dtype])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("before", ["none", "relu"])
@pytest.mark.parametrize("mid", ["none", "relu"])
@pytest.mark.parametrize("after", ["none", "relu", "relu6"])
def test_activations(before: str, mid: str, after: str, dtype: torch.dtype) -> None:
    for bias in (False, True):
        case = Case((1, 40, 5, 6), 24, activations=(before, mid, after), residual=True, bias=bias)
        problem = make_problem(case, dtype)
        run(problem, load(checked=False))
        problem.check()


def test_each_tile_gives_the_same_bits() -> None:
    case = Case((2, 136, 13, 21), 776, residual=True)
    host = load(checked=False)
    results = [
        run(make_problem_like(case, tile, cluster), host)
        for tile in TILES.values()
        for cluster in range(1, MAX_CLUSTER + 1)
    ]
    assert all(torch.equal(results[0], result) for result in results)


def make_problem_like(case: Case, tile: int, cluster: int) -> Problem:
    """The same numbers, another tile."""
    return replace(make_problem(case), case=replace(case, tile=tile, cluster=cluster))


def test_an_image_alone_gives_the_bits_it_has_in_a_batch() -> None:
    problem = make_problem(Case((3, 72, 11, 10), 264))
    together = run(problem, load(checked=False)).clone()
    for image in range(3):
        alone = replace(
            problem,
            case=replace(problem.case, sizes=(1, 72, 11, 10)),
            x=problem.x[image : image + 1],
            y=channels_last(torch.zeros(1, 264, 11, 10, dtype=torch.bfloat16)),
        )
        assert torch.equal(run(alone, load(checked=False))[0], together[image])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_nan_and_infinity_reach_the_outputs_they_reach_in_torch(dtype: torch.dtype) -> None:
    problem = make_problem(Case((1, 24, 9, 9), 16, activations=("relu", "relu", "relu6"), vectors=False), dtype)
    problem.x[0, 3, 2, 2] = float("nan")
    problem.x[0, 5, 7, 7] = float("inf")
    y = run(problem, load(checked=False))
    baseline = problem.evaluate(torch.float32)
    assert torch.equal(y.isnan(), baseline.isnan())


def test_empty_batch() -> None:
    run(make_problem(Case((0, 16, 9, 11), 24)), load(checked=False))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_statistics(dtype: torch.dtype) -> None:
    check_statistics(Case((2, 72, 11, 21), 136), dtype)


def check_statistics(case: Case, dtype: torch.dtype) -> None:
    problem = make_problem(case, dtype)
    problem.scale = None
    host = load(checked=True)
    host.context(sm=90, multiprocessors=case.multiprocessors)
    workspace = torch.empty(host.workspace_bytes(problem.call(), True), dtype=torch.uint8)
    mean, var = torch.empty(case.K), torch.empty(case.K)
    host.forward_statistics(problem.call(), mean, var, workspace)
    z, exact = problem.y.float(), problem.y.double()
    assert_as_accurate(mean, z.mean((0, 2, 3)), exact.mean((0, 2, 3)), "mean")
    assert_as_accurate(var, *(t.var((0, 2, 3), unbiased=False) for t in (z, exact)), "var")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"window": (5, 5)}, "window is 3 x 3"),
        ({"stride": (2, 2)}, "stride is 1"),
        ({"dilation": (2, 2)}, "dilation is 1"),
        ({"input_activation": "silu"}, "before the product"),
        ({"mid_activation": "elu"}, "before the product"),
        ({"activation": "silu"}, "last activations"),
    ],
)
def test_what_it_does_not_do_it_declines(changed: dict[str, object], reason: str) -> None:
    host = load(checked=False)
    host.context(sm=90)
    call = make_problem(Case((1, 16, 9, 11), 24)).call()
    assert reason in host.unsupported({**call, **changed})


def test_other_devices_types_and_channels_are_declined() -> None:
    host = load(checked=False)
    call = make_problem(Case((1, 16, 9, 11), 24)).call()
    host.context(sm=80)
    assert "compute capability 9.0" in host.unsupported(call)
    host.context(sm=90)
    assert "16-bit" in host.unsupported(make_problem(Case((1, 16, 9, 11), 24), torch.float32).call())
    assert "multiples of 8" in host.unsupported(make_problem(Case((1, 12, 9, 11), 24)).call())
    assert "multiples of 8" in host.unsupported(make_problem(Case((1, 16, 9, 11), 20)).call())
    assert "16 bytes" in host.unsupported(make_problem(Case((1, 16, 9, 11), 24, spare=4)).call())
