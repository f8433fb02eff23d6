"""The CUDA kernels of separable_conv2d, executed on the host: numbers against float64, and the checker's silence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import host_cuda
import oracle
import pytest
import torch
from torch import Tensor

from inception_kernels.models.layers import distinct_layers

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CHECKED = host_cuda.SCHEDULES


@dataclass(frozen=True)
class Case:
    """One call. `dtype` "tf32" is float32 with TF32 allowed."""

    sizes: tuple[int, int, int, int] = (1, 16, 9, 11)  # N, C, H, W
    K: int = 24
    window: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    activations: tuple[str, str, str] = ("relu", "none", "none")
    dtype: str = "bf16"
    vectors: bool = True  # depthwise bias, scale and shift
    residual: bool = False
    spare: int = 0  # channels beside x, y and the residual in their memory
    multiprocessors: int = 2
    sm: int = 80
    kernel: str = ""  # that must run; empty: whichever

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES["fp32" if self.dtype == "tf32" else self.dtype]

    @property
    def geometry(self) -> dict[str, tuple[int, int]]:
        return {"window": self.window, "stride": self.stride, "padding": self.padding, "dilation": self.dilation}


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
    depthwise: Tensor
    pointwise: Tensor
    depthwise_bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    residual: Tensor | None

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
            self.case.stride, self.case.padding, self.case.dilation, cast(self.depthwise_bias),
            input_activation=before, mid_activation=mid, activation=after, eps=oracle.NO_EPS,
        )  # fmt: skip


@cache
def make_problem(case: Case) -> Problem:
    generator = torch.Generator().manual_seed(len(repr(case)))

    def random(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*sizes, generator=generator) * scale).to(case.torch_dtype)

    n, c, h, w = case.sizes
    r, s = case.window
    x = channels_last(random(n, c, h, w), case.spare)
    depthwise = random(c, 1, r, s, scale=(r * s) ** -0.5)
    pointwise = random(case.K, c, 1, 1, scale=c**-0.5)
    p, q = (
        (size + 2 * pad - dilation * (side - 1) - 1) // stride + 1
        for size, pad, dilation, side, stride in zip(
            (h, w), case.padding, case.dilation, case.window, case.stride, strict=True
        )
    )
    residual = channels_last(random(n, case.K, p, q), case.spare) if case.residual else None
    if not case.vectors:
        return Problem(case, x, depthwise, pointwise, None, None, None, residual)
    bias, shift = random(c).float() * 0.3, random(case.K).float() * 0.3
    scale = random(case.K).float() * 0.2 + 1
    return Problem(case, x, depthwise, pointwise, bias, scale, shift, residual)


def output_sizes(problem: Problem) -> tuple[int, int, int, int]:
    case = problem.case
    p, q = (
        (size + 2 * pad - dilation * (side - 1) - 1) // stride + 1
        for size, pad, dilation, side, stride in zip(
            case.sizes[2:], case.padding, case.dilation, case.window, case.stride, strict=True
        )
    )
    return case.sizes[0], case.K, p, q


def pack(host: host_cuda.Host, problem: Problem) -> tuple[Tensor, Tensor]:
    sizes = host.packed_bytes(problem.depthwise, problem.case.K)
    packed = tuple(torch.empty(size // problem.x.element_size(), dtype=problem.x.dtype) for size in sizes)
    host.pack(problem.depthwise, problem.pointwise, *packed)
    return packed


def launch_tensors(host: host_cuda.Host, problem: Problem) -> dict[str, Tensor | None]:
    depthwise, pointwise = pack(host, problem)
    y = channels_last(torch.full(output_sizes(problem), float("nan"), dtype=problem.x.dtype), problem.case.spare)
    return {
        "x": problem.x, "depthwise": depthwise, "pointwise": pointwise, "depthwise_bias": problem.depthwise_bias,
        "scale": problem.scale, "shift": problem.shift, "residual": problem.residual, "y": y,
    }  # fmt: skip


def host_for(case: Case, checked: bool, schedule: host_cuda.Schedule) -> host_cuda.Host:
    host = host_cuda.load("separable_conv2d", checked, also=("batch_norm", "conv2d_bn_act")).on(schedule)
    host.context(case.sm, case.multiprocessors, case.dtype == "tf32")
    host.reset_counted_kernels()
    return host


def run(case: Case, checked: bool, schedule: host_cuda.Schedule = CHECKED[0]) -> Tensor:
    host = host_for(case, checked, schedule)
    problem = make_problem(case)
    tensors = launch_tensors(host, problem)
    arguments = (tensors, case.geometry, list(case.activations))
    assert host.unsupported(*arguments) == ""
    workspace = torch.empty(host.workspace_bytes(*arguments, False), dtype=torch.uint8)
    host.forward(*arguments, workspace)
    if case.kernel:
        assert host.counted_kernels() == f"separable_conv2d.forward.cuda_{case.kernel}_{case.dtype}=1\n"
    return tensors["y"]


def run_statistics(case: Case, checked: bool, schedule: host_cuda.Schedule = CHECKED[0]) -> dict[str, Tensor]:
    """y, mean and var of a convolution with a bias only."""
    host = host_for(case, checked, schedule)
    problem = make_problem(case)
    tensors = launch_tensors(host, problem)
    tensors["scale"] = None
    arguments = (tensors, case.geometry, list(case.activations))
    mean, var = torch.full((2, case.K), float("nan"))
    workspace = torch.empty(host.workspace_bytes(*arguments, True), dtype=torch.uint8)
    host.forward_statistics(*arguments, mean, var, workspace)
    return {"y": tensors["y"], "mean": mean, "var": var}


def rounded_to_tf32(tensor: Tensor) -> Tensor:
    """To 10 bits of mantissa, to nearest with ties away from zero."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def evaluate_tf32(problem: Problem) -> Tensor:
    """What PyTorch computes where TF32 is allowed: the operands of the product are rounded."""
    case = problem.case
    before, mid, after = case.activations
    x = oracle.activate(problem.x, before)
    sums = torch.nn.functional.conv2d(
        x, problem.depthwise, problem.depthwise_bias, case.stride, case.padding, case.dilation, x.shape[1]
    )
    norm = (None, None, None, None)
    if problem.scale is not None:
        norm = (problem.scale, problem.shift, torch.zeros(case.K), torch.ones(case.K))
    return oracle.conv2d_bn_act(
        rounded_to_tf32(oracle.activate(sums, mid)), rounded_to_tf32(problem.pointwise), *norm,
        residual=problem.residual, activation=after, eps=oracle.NO_EPS,
    )  # fmt: skip


def check(case: Case, y: Tensor) -> None:
    check_output(make_problem(case), y)


def check_output(problem: Problem, y: Tensor) -> None:
    tf32 = problem.case.dtype == "tf32"
    baseline = evaluate_tf32(problem) if tf32 else problem.evaluate(problem.x.dtype)
    oracle.assert_as_accurate_as_torch(y, problem.evaluate(torch.float64), [baseline], name=repr(problem.case))


# What selects another path through the kernels; the checker looks at these under several schedules.
SMALL = {
    "square tile": Case((1, 72, 19, 19), 128, multiprocessors=1),
    "wide tile": Case((1, 136, 9, 19), 200, multiprocessors=1),
    "small tile": Case((1, 136, 9, 19), 72, multiprocessors=80),
    "gathered": Case((1, 20, 9, 11), 12, residual=True),
    "separate activation": Case((1, 72, 7, 9), activations=("elu", "relu6", "silu")),
    "separate activation, tiles inside the image": Case(
        (1, 24, 50, 11), activations=("silu", "none", "none"), multiprocessors=1
    ),
    "spread window": Case((2, 16, 12, 13), stride=(2, 1), dilation=(1, 2), padding=(2, 0)),
    "fp32": Case((1, 40, 7, 9), dtype="fp32", residual=True),
    "tf32": Case((1, 40, 7, 9), dtype="tf32"),
}

SHAPES = {
    "5x5": Case((1, 24, 13, 12), window=(5, 5), padding=(2, 2)),
    "7x7 stride 2": Case((1, 16, 21, 23), window=(7, 7), padding=(3, 3), stride=(2, 2)),
    "1x3": Case((2, 40, 6, 33), window=(1, 3), padding=(0, 1)),
    "3x1": Case((2, 40, 6, 33), window=(3, 1), padding=(1, 0)),
    "1x1": Case((2, 40, 5, 6), window=(1, 1), padding=(0, 0)),
    "2x4": Case((1, 24, 9, 9), window=(2, 4), padding=(1, 3)),
    "no padding": Case((1, 24, 9, 9), padding=(0, 0)),
    "padding wider than the window": Case((1, 24, 4, 5), padding=(4, 3)),
    "one output pixel": Case((3, 24, 3, 3), padding=(0, 0)),
    "one row": Case((1, 24, 1, 300)),
    "one column": Case((1, 24, 300, 1)),
    "stride 2": Case((2, 72, 19, 18), 136, stride=(2, 2)),
    "stride 3, dilation 2": Case((1, 24, 25, 31), stride=(3, 3), dilation=(2, 2), padding=(2, 2)),
    "dilation 12": Case((1, 24, 30, 31), dilation=(12, 12), padding=(12, 12)),
    "dilation 24": Case((1, 24, 50, 51), dilation=(24, 24), padding=(24, 24)),
    "one channel": Case((2, 1, 7, 8), 1),
    "3 channels": Case((2, 3, 17, 19), 32, stride=(2, 2)),
    "odd channels": Case((1, 73, 8, 9), 67, residual=True),
    "channels of a slice": Case((2, 24, 8, 9), 40, spare=8, residual=True),
    "unaligned slice": Case((2, 24, 8, 9), 40, spare=3, residual=True),
    "batch 3": Case((3, 72, 10, 10), 128),
    "no vectors": Case((1, 24, 8, 9), vectors=False, activations=("none", "none", "none")),
    "shared memory of compute capability 8.6": Case((1, 72, 19, 19), 264, sm=86, multiprocessors=1),
}

LARGE = {
    "728 -> 728 at 19": Case((1, 728, 19, 19), 728, multiprocessors=8, residual=True),
    "728 -> 728 at 19, batch 1 on a whole GPU": Case((1, 728, 19, 19), 728, multiprocessors=108),
    "1536 -> 2048 at 10": Case((1, 1536, 10, 10), 2048, multiprocessors=16, activations=("none", "none", "relu")),
    "728 -> 256 at 10, stride 2": Case((1, 728, 19, 19), 256, stride=(2, 2), multiprocessors=16),
}

ACTIVATIONS = ("none", "relu", "relu6", "elu", "silu")


# bfloat16 for every shape, and one of the others.
SHAPES_AND_DTYPES = [(name, "bf16") for name in SHAPES]
SHAPES_AND_DTYPES += [(name, ("fp16", "tf32", "fp32")[i % 3]) for i, name in enumerate(SHAPES)]


@pytest.mark.parametrize(("name", "dtype"), SHAPES_AND_DTYPES)
def test_shapes(name: str, dtype: str) -> None:
    case = replace(SHAPES[name], dtype=dtype)
    check(case, run(case, checked=False))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_residual_of_several_tiles_of_channels(dtype: str) -> None:
    case = Case((1, 24, 5, 6), 296, residual=True, dtype=dtype)
    check(case, run(case, checked=False))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_depthwise_weight_with_gaps(dtype: str) -> None:
    """Packed as its contiguous copy is."""
    case = Case(window=(3, 2), dtype=dtype)
    host, problem = host_for(case, True, CHECKED[0]), make_problem(case)
    gaps = torch.full((16, 1, 5, 4), float("nan"), dtype=case.torch_dtype)[:, :, 1:4, :2]
    gaps.copy_(problem.depthwise)
    packed = pack(host, replace(problem, depthwise=gaps))
    for ours, expected in zip(packed, pack(host, problem), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "tf32", "fp32"])
@pytest.mark.parametrize("place", range(3), ids=["input", "mid", "output"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, place: int, dtype: str) -> None:
    activations = ["none", "none", "none"]
    activations[place] = activation
    for sizes in ((1, 16, 5, 7), (1, 15, 5, 7)):
        case = Case(sizes, activations=tuple(activations), dtype=dtype, residual=True)
        check(case, run(case, checked=False))


# The kernel for few channels and large images.
ROWS = {
    "64 -> 72, one chunk": Case((1, 64, 30, 37), 72, multiprocessors=1, kernel="sm80_rows"),
    "128 -> 136, two passes": Case((1, 128, 21, 30), 136, multiprocessors=1, kernel="sm80_rows", residual=True, sm=90),
    "40 -> 24, no padding, slice": Case((1, 40, 37, 40), 24, padding=(0, 0), spare=8, multiprocessors=1, kernel="sm80_rows"),
    "72 -> 64, wide padding": Case((2, 72, 17, 19), 64, padding=(3, 2), multiprocessors=1, kernel="sm80_rows", activations=("none", "silu", "relu6")),
    "part of 128 -> 128 at 147": Case((1, 128, 8, 147), 128, multiprocessors=1, kernel="sm80_rows"),
    "three workers, items of one step": Case((7, 40, 4, 40), 64, multiprocessors=1, kernel="sm80_rows", sm=90, activations=("none", "elu", "elu")),
    "no vectors": Case((1, 64, 32, 20), 32, vectors=False, multiprocessors=1, kernel="sm80_rows", activations=("none", "none", "none")),
    "narrow": Case((3, 64, 60, 3), 32, multiprocessors=1, kernel="sm80_rows", residual=True, activations=("none", "none", "relu")),
}  # fmt: skip


# Every schedule for one case of each kernel, one of them in turn for the others.
SCHEDULED = [(name, schedule) for name in ("wide tile", "narrow") for schedule in CHECKED]
SCHEDULED += [(name, CHECKED[i % len(CHECKED)]) for i, name in enumerate([*SMALL, *ROWS])]


@pytest.mark.parametrize(("name", "schedule"), dict.fromkeys(SCHEDULED), ids=lambda value: f"{value}")
def test_checker_is_silent(name: str, schedule: host_cuda.Schedule) -> None:
    case = {**SMALL, **ROWS}[name]
    check(case, run(case, True, schedule))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("case", ROWS.values(), ids=ROWS.keys())
def test_rows(case: Case, dtype: str) -> None:
    case = replace(case, dtype=dtype)
    check(case, run(case, checked=False))


@pytest.mark.parametrize("narrow", ["y", "residual"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_residual_and_output_of_different_alignment(dtype: str, narrow: str) -> None:
    """One is accessed 16 bytes at a time, the other by elements."""
    case = Case((2, 24, 8, 9), 40, dtype=dtype, residual=True)
    host = host_for(case, True, CHECKED[0])
    problem = make_problem(case)
    tensors = launch_tensors(host, problem)
    tensors[narrow] = channels_last(tensors[narrow], spare=3)
    arguments = (tensors, case.geometry, list(case.activations))
    host.forward(*arguments, torch.empty(host.workspace_bytes(*arguments, False), dtype=torch.uint8))
    check(case, tensors["y"])


@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE.keys())
def test_large_shapes(case: Case) -> None:
    check(case, run(case, checked=False))


LAYER_DTYPES = ("bf16", "fp16", "tf32", "fp32")
LAYERS = {
    str(layer): Case(
        (1, layer.in_channels, layer.height, layer.width), layer.out_channels, layer.kernel_size, layer.stride,
        layer.padding, layer.dilation, (layer.input_activation, "none", layer.activation),
        residual=layer.adds_residual, multiprocessors=108,
    )
    for layer in distinct_layers("xception")
    if layer.operator == "separable_conv2d"
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_the_networks(name: str, layer_dtype: str) -> None:
    case = replace(LAYERS[name], dtype=layer_dtype)
    check(case, run(case, checked=True))


def test_statistics_of_the_networks_layers(some_layer: str, layer_dtype: str) -> None:
    case = replace(LAYERS[some_layer], dtype=layer_dtype, residual=False, activations=("relu", "none", "none"))
    check_statistics(case, checked=True)


STATISTICS = {
    "wide tile": Case((2, 72, 19, 19), 136, multiprocessors=1),
    "square tile, narrow strips": Case((1, 40, 9, 75), 40, multiprocessors=1),
    "small tile, no output activation": Case((1, 136, 9, 19), 72, multiprocessors=80, activations=("silu", "relu", "none")),
    "gathered": Case((2, 20, 9, 11), 13, stride=(2, 2)),
    "fp32": Case((1, 40, 7, 9), 33, dtype="fp32"),
    "tf32": Case((1, 40, 7, 9), 40, dtype="tf32"),
    "shape of the kernel for few channels": Case((1, 64, 30, 37), 72, multiprocessors=1),
}  # fmt: skip


@pytest.mark.parametrize("checked", [False, True], ids=["fast", "checked"])
@pytest.mark.parametrize("case", STATISTICS.values(), ids=STATISTICS.keys())
def test_statistics(case: Case, checked: bool) -> None:
    check_statistics(case, checked)


def check_statistics(case: Case, checked: bool) -> None:
    found = run_statistics(case, checked)
    linear = replace(case, activations=(*case.activations[:2], "none"))
    # The bias is the shift of a scale of one.
    check_output(replace(make_problem(case), case=linear, scale=torch.ones(case.K), residual=None), found["y"])
    stored = found["y"]
    for name, exact, torchs in (
        ("mean", stored.double().mean((0, 2, 3)), stored.float().mean((0, 2, 3))),
        ("var", stored.double().var((0, 2, 3), unbiased=False), stored.float().var((0, 2, 3), unbiased=False)),
    ):
        oracle.assert_as_accurate_as_torch(found[name], exact, [torchs], name=name)


def test_empty_batch() -> None:
    case = Case((0, 16, 9, 11))
    assert run(case, checked=False).shape == (0, 24, 9, 11)


def reason(case: Case) -> str:
    host = host_for(case, False, CHECKED[0])
    return host.unsupported(launch_tensors(host, make_problem(case)), case.geometry, list(case.activations))


def test_reasons() -> None:
    assert reason(Case()) == ""
    assert reason(Case(sm=75)) == "the CUDA kernels need compute capability 8.0 or newer"
    assert reason(Case((1, 8, 12, 12), window=(8, 3))) == "the depthwise window is larger than 7 x 7"
    assert reason(Case((1, 8, 3, 3), stride=(2**25, 1))) == "stride, padding or dilation is larger than 2^24"


def test_an_image_does_not_depend_on_its_batch() -> None:
    for case in (Case((3, 40, 9, 19), 72), replace(ROWS["narrow"], residual=False)):
        whole = run(case, checked=False)
        host = host_for(case, False, CHECKED[0])
        problem = make_problem(case)
        tensors = launch_tensors(host, problem) | {"x": problem.x[1:2]}
        tensors["y"] = torch.empty_like(whole[1:2])
        host.forward(tensors, case.geometry, list(case.activations), torch.empty(0, dtype=torch.uint8))
        assert torch.equal(tensors["y"], whole[1:2])
