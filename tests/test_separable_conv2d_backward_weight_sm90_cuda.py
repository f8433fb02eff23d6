"""The pointwise weight's gradient on Hopper, executed on the host: the sums of every part of the pixels."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import host_cuda
import pytest
import torch
from host_cuda import SCHEDULES, Host
from oracle import assert_as_accurate_as_torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
OWN_CHOICE = -1
TILES = 7


@dataclass(frozen=True)
class Case:
    """grad_z [N, K, P, Q], and C channels of the depthwise output whose pixels are `pitch` elements apart (0: C)."""

    N: int
    P: int
    Q: int
    K: int
    C: int
    pitch: int = 0


SHAPES = {
    "one_stage": Case(1, 8, 8, 64, 64),
    "part_of_a_stage": Case(1, 3, 5, 40, 24),
    "one_pixel": Case(1, 1, 1, 24, 16),
    "pixels_of_many_images": Case(70, 1, 1, 16, 8),
    "columns": Case(2, 9, 1, 16, 8),
    "several_parts": Case(3, 19, 19, 72, 40),
    "more_steps_than_stages": Case(1, 24, 25, 8, 72),
    "several_tiles": Case(1, 5, 7, 264, 328),
    "gaps_between_pixels": Case(2, 9, 8, 24, 36, pitch=40),
    "odd_channels": Case(2, 7, 9, 24, 17, pitch=24),
}


@functools.cache
def host(checked: bool) -> Host:
    loaded = host_cuda.load("separable_conv2d_backward_weight_sm90", checked=checked)
    loaded.context(sm=90, multiprocessors=3)
    return loaded


@dataclass
class Problem:
    grad_z: Tensor
    pixels: Tensor

    @staticmethod
    def random(case: Case, dtype: torch.dtype) -> Problem:
        generator = torch.Generator().manual_seed(0)
        grad_z = torch.randn(case.N, case.P, case.Q, case.K, generator=generator).to(dtype).permute(0, 3, 1, 2)
        count = case.N * case.P * case.Q
        whole = torch.full((count, case.pitch or case.C), float("nan"), dtype=dtype)
        pixels = whole[:, : case.C]
        pixels.copy_(torch.randn(count, case.C, generator=generator))
        return Problem(grad_z, pixels)

    def products(self, dtype: torch.dtype, part_pixels: int) -> list[Tensor]:
        """Of each part of the pixels; in float32 the products of what is given, summed by PyTorch."""
        rows = self.grad_z.permute(0, 2, 3, 1).reshape(-1, self.grad_z.shape[1]).to(dtype)
        parts = zip(rows.split(part_pixels), self.pixels.to(dtype).split(part_pixels), strict=True)
        return [left.T @ right for left, right in parts]


def check(problem: Problem, *, on: Host, tile: int = OWN_CHOICE) -> Tensor:
    assert on.unsupported(problem.grad_z, problem.pixels) == ""
    _, part_pixels, parts = on.plan(problem.grad_z, problem.pixels, tile)
    K, C = problem.grad_z.shape[1], problem.pixels.shape[1]
    whole = torch.full((parts, K, problem.pixels.stride(0)), float("nan"))
    on.reset_counted_kernels()
    written = whole[:, :, : -(-C // 2) * 2]  # pairs of columns
    on.sums(problem.grad_z, problem.pixels, written, tile)
    kind = next(name for name, dtype in DTYPES.items() if dtype == problem.grad_z.dtype)
    assert on.counted_kernels() == f"separable_conv2d.backward.cuda_sm90_{kind}=1\n"
    dtype = problem.grad_z.dtype
    exact, torchs = problem.products(torch.float64, part_pixels), problem.products(dtype, part_pixels)
    assert len(exact) == parts
    for part, (sums, truth, baseline) in enumerate(zip(whole[:, :, :C], exact, torchs, strict=True)):
        # As they end up: rounded to the dtype of the gradient.
        assert_as_accurate_as_torch(sums.to(dtype), truth, [baseline], name=f"part {part}")
    return whole[:, :, :C]


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    check(Problem.random(SHAPES[name], torch.bfloat16), on=host(True))


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_in_half_precision(name: str) -> None:
    check(Problem.random(SHAPES[name], torch.float16), on=host(False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", range(TILES))
def test_every_tile(tile: int, dtype: str) -> None:
    check(Problem.random(Case(2, 18, 17, 264, 280), DTYPES[dtype]), on=host(dtype == "bf16"), tile=tile)


def test_tiles_are_all_tested() -> None:
    assert host(True).tiles() == TILES


@pytest.mark.parametrize("schedule", SCHEDULES[1:], ids=str)
@pytest.mark.parametrize("name", ["several_parts", "several_tiles", "more_steps_than_stages"])
def test_schedules(name: str, schedule: host_cuda.Schedule) -> None:
    problem = Problem.random(SHAPES[name], torch.bfloat16)
    assert torch.equal(check(problem, on=host(True).on(schedule)), check(problem, on=host(True)))


def test_exact_sums_of_integers() -> None:
    """Every product has its place: no rounding can hide one that is missing."""
    problem = Problem.random(Case(1, 40, 40, 136, 200), torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    for tensor in (problem.grad_z, problem.pixels):
        tensor.copy_(torch.randint(-4, 5, tensor.shape, generator=generator))
    for tile in range(TILES):
        _, part_pixels, _ = host(True).plan(problem.grad_z, problem.pixels, tile)
        for sums, exact in zip(
            check(problem, on=host(True), tile=tile), problem.products(torch.float64, part_pixels), strict=True
        ):
            assert torch.equal(sums.double(), exact)


def test_slices() -> None:
    """Channels of a wider gradient, whose neighbours are NaN."""
    problem = Problem.random(SHAPES["several_parts"], torch.bfloat16)
    N, K, P, Q = problem.grad_z.shape
    whole = torch.full((N, P, Q, K + 24), float("nan"), dtype=torch.bfloat16).permute(0, 3, 1, 2)
    whole[:, 8 : 8 + K] = problem.grad_z
    problem.grad_z = whole[:, 8 : 8 + K]
    check(problem, on=host(True))


def test_nan_stays_in_its_row_and_its_column() -> None:
    problem = Problem.random(SHAPES["one_stage"], torch.bfloat16)
    problem.grad_z[0, 5, 2, 3] = float("nan")
    problem.pixels[7, 9] = float("inf")
    partial = torch.full((1, 64, 64), float("nan"))
    host(True).sums(problem.grad_z, problem.pixels, partial, OWN_CHOICE)
    wrong = ~partial[0].isfinite()
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[5], expected[:, 9] = True, True
    assert torch.equal(wrong, expected)


def test_few_pixels_are_not_split() -> None:
    problem = Problem.random(Case(1, 16, 16, 8, 8), torch.bfloat16)
    assert host(True).plan(problem.grad_z, problem.pixels, 0)[1:] == (256, 1)


def test_reasons() -> None:
    problem = Problem.random(SHAPES["several_parts"], torch.bfloat16)
    grad_z, pixels = problem.grad_z, problem.pixels
    assert host(True).unsupported(grad_z.float(), pixels.float()) == "the Hopper kernel is for 16-bit types"
    assert host(True).unsupported(grad_z[:, :, :, :-1], pixels) == "the rows of the gradient do not follow each other"
    assert host(True).unsupported(grad_z[:, :, :-1], pixels) == "the rows of the gradient do not follow each other"
    unaligned = "pixels of the gradient do not begin at multiples of 16 bytes"
    assert host(True).unsupported(grad_z[:, 3:], pixels) == unaligned
    assert host(True).unsupported(Problem.random(Case(1, 4, 4, 20, 8), torch.bfloat16).grad_z, pixels) == unaligned
    host(True).context(sm=80, multiprocessors=3)
    try:
        assert host(True).unsupported(grad_z, pixels) == "the Hopper kernel needs compute capability 9.0"
    finally:
        host(True).context(sm=90, multiprocessors=3)
