"""The CUDA kernels of separable_conv2d, executed on the host: numbers against float64, and the checker's silence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import host_cuda
import oracle
import pytest
import torch
from torch import Tensor

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
            input_activation=before, mid_activation=mid, activation=after, eps=0.0,
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


def run(case: Case, checked: bool, schedule: host_cuda.Schedule = CHECKED[0]) -> Tensor:
    host = host_cuda.load("separable_conv2d", checked, also=("batch_norm",)).on(schedule)
    host.context(case.sm, case.multiprocessors, case.dtype == "tf32")
    problem = make_problem(case)
    tensors = launch_tensors(host, problem)
    arguments = (tensors, case.geometry, list(case.activations))
    assert host.unsupported(*arguments) == ""
    workspace = torch.empty(host.workspace_bytes(*arguments, False), dtype=torch.uint8)
    host.forward(*arguments, workspace)
    return tensors["y"]


def check(case: Case, y: Tensor) -> None:
    problem = make_problem(case)
    baseline = problem.evaluate(problem.x.dtype)
    oracle.assert_as_accurate_as_torch(y, problem.evaluate(torch.float64), [baseline], name=repr(case))


SMALL = {
    "default": Case(),
    "square": Case((1, 72, 19, 19), 128, multiprocessors=1),
    "wide": Case((1, 136, 9, 19), 200, multiprocessors=1),
    "small": Case((1, 136, 9, 19), 72, multiprocessors=80),
}


@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL.keys())
def test_numbers(case: Case) -> None:
    check(case, run(case, checked=False))


@pytest.mark.parametrize("schedule", CHECKED, ids=str)
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL.keys())
def test_checker_is_silent(case: Case, schedule: host_cuda.Schedule) -> None:
    check(case, run(case, True, schedule))
