"""The CUDA kernel of asymmetric_pair, executed on the host, and the two kernels that run where it does not fit."""

from dataclasses import replace
from typing import Any

import host_cuda
import pytest
import torch
from cuda_tensors import dense, in_slice
from oracle import ACTIVATIONS
from pair_cases import KERNELS, Half, Problem, Shape, pair
from torch import Tensor

from inception_kernels.models.layers import distinct_pairs

ALSO = ("conv2d_bn_act", "batch_norm")


SHAPES = {
    "1x7_7x1": pair(2, 40, 9, 11, 48, 56, 7),
    "7x1_1x7": pair(2, 40, 9, 11, 48, 56, 7, columns_first=True),
    "1x3_3x1": pair(3, 16, 8, 8, 24, 40, 3),
    "odd_channels": pair(1, 8, 7, 5, 21, 13, 5),
    "many_channels": pair(1, 8, 6, 5, 136, 200, 3),
    "one_line": pair(1, 8, 5, 1, 8, 8, 3),
    "lines_of_128": Shape(1, 8, 128, 3, Half(16, (1, 3), (0, 1)), Half(16, (3, 1), (1, 0))),
    "no_padding": Shape(2, 16, 9, 10, Half(24, (1, 3)), Half(16, (3, 1))),
    "longer_output": Shape(2, 16, 9, 10, Half(24, (1, 3)), Half(16, (3, 1), (4, 0))),
    "strides": Shape(2, 16, 9, 12, Half(24, (1, 3), (0, 1), (1, 2)), Half(16, (3, 1), (1, 0), (2, 1))),
    "two_taps": Shape(2, 8, 7, 6, Half(8, (2, 1)), Half(16, (1, 2))),
    "square_first": Shape(1, 16, 7, 8, Half(24, (3, 3), (1, 1)), Half(16, (1, 5), (0, 2))),
}


@pytest.fixture(scope="module")
def host():
    return host_cuda.load("asymmetric_pair", checked=True, also=ALSO)


def pack(host, weight: Tensor) -> Tensor:
    packed = torch.full((host.packed_bytes(weight) // weight.element_size(),), float("nan"), dtype=weight.dtype)
    host.pack(weight, packed)
    return packed


def arguments(host, problem: Problem) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
    layers = [layer.arguments(pack(host, layer.weight)) for layer in (problem.first, problem.second)]
    return problem.x, layers[0], layers[1]


def use_kernel(host, kernel: str, sm: int = 80, multiprocessors: int = 2) -> None:
    host.context(sm=sm, multiprocessors=multiprocessors, allow_tf32=kernel == "tf32")
    host.reset_counted_kernels()


def forward(host, problem: Problem, y: Tensor | None = None) -> Tensor:
    empty = torch.full_like(problem.compute(torch.float64), float("nan"))
    y = dense(empty.to(problem.x.dtype)) if y is None else y
    given = arguments(host, problem)
    workspace = torch.full((host.workspace_bytes(*given, y),), 0xFF, dtype=torch.uint8)
    host.forward(*given, y, workspace)
    return y


def split_reason(host, problem: Problem) -> str:
    y = dense(problem.compute(torch.float64).to(problem.x.dtype))
    return host.split_reason(*arguments(host, problem), y)


def ran_as_one(host, kernel: str) -> bool:
    return host.counted_kernels() == f"asymmetric_pair.forward.cuda_sm80_{kernel}=1\n"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(host, name, kernel):
    schedule = host_cuda.SCHEDULES[list(SHAPES).index(name) % len(host_cuda.SCHEDULES)]
    use_kernel(host, kernel)
    problem = Problem.random(SHAPES[name], kernel)
    problem.check(forward(host.on(schedule), problem), name)
    assert ran_as_one(host, kernel)


@pytest.mark.parametrize("schedule", host_cuda.SCHEDULES, ids=str)
@pytest.mark.parametrize("kernel", ["bf16", "fp32"])
def test_schedules(host, kernel, schedule):
    use_kernel(host, kernel)
    problem = Problem.random(pair(2, 40, 9, 8, 136, 72, 5), kernel)
    problem.check(forward(host.on(schedule), problem), "schedule")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kernel", ["bf16", "fp32"])
def test_activations(host, kernel, activation):
    use_kernel(host, kernel)
    problem = Problem.random(SHAPES["1x3_3x1"], kernel, (activation, "none"))
    problem.check(forward(host, problem), activation)
    problem = Problem.random(SHAPES["1x3_3x1"], kernel, ("none", activation))
    problem.check(forward(host, problem), activation)


@pytest.mark.parametrize(("more", "first"), [(24, 8), (5, 3)], ids=["aligned", "odd"])
def test_output_slices(host, more, first):
    use_kernel(host, "bf16")
    problem = Problem.random(SHAPES["1x7_7x1"], "bf16")
    y = in_slice(torch.full_like(problem.compute(torch.float32), float("nan")).bfloat16(), more, first)
    problem.check(forward(host, problem, y), "slice")
    assert ran_as_one(host, "bf16")


@pytest.mark.parametrize("kernel", KERNELS)
def test_bits_of_two_kernels_and_of_any_batch(host, kernel):
    """Where channels fill whole steps one kernel adds the same products in the same order as two."""
    problem = Problem.random(pair(3, 32, 9, 8, 64, 40, 3), kernel)
    use_kernel(host, kernel)
    together = forward(host, problem)
    assert ran_as_one(host, kernel)
    use_kernel(host, kernel, multiprocessors=1000)
    assert torch.equal(forward(host, problem), together)
    assert host.counted_kernels() == f"conv2d_bn_act.forward.cuda_sm80_{kernel}=2\n"
    use_kernel(host, kernel)
    assert torch.equal(forward(host, replace(problem, x=problem.x[1:2])), together[1:2])


@pytest.mark.parametrize("kernel", ["bf16", "fp32"])
def test_nan_stays_inside_its_windows(host, kernel):
    use_kernel(host, kernel)
    problem = Problem.random(SHAPES["1x7_7x1"], kernel, ("none", "none"))
    problem.x[1, 5, 4, 3] = float("nan")
    assert torch.equal(forward(host, problem).isnan(), problem.compute(torch.float64).isnan())


SPLIT = {
    "the channels of x are not read 16 bytes at a time": pair(1, 12, 6, 5, 8, 8, 3),
    "the second window runs along both axes": Shape(1, 8, 6, 5, Half(8, (1, 3), (0, 1)), Half(8, (3, 3), (1, 1))),
    "lines of more than 128 pixels": Shape(1, 8, 129, 2, Half(8, (1, 1)), Half(8, (3, 1), (1, 0))),
    "an intermediate of too many channels for shared memory": pair(1, 8, 4, 3, 416, 8, 3),
}


@pytest.mark.parametrize("reason", SPLIT)
def test_two_kernels_where_one_does_not_fit(host, reason):
    use_kernel(host, "bf16")
    problem = Problem.random(SPLIT[reason], "bf16")
    assert split_reason(host, problem) == reason
    problem.check(forward(host, problem), reason)
    assert host.counted_kernels() == "conv2d_bn_act.forward.cuda_sm80_bf16=2\n"


def test_two_kernels_where_they_are_expected_to_be_faster(host):
    problem = Problem.random(pair(2, 64, 9, 8, 64, 64, 3), "bf16")
    use_kernel(host, "bf16", multiprocessors=1000)
    assert split_reason(host, problem) == "too few lines to occupy the device"
    use_kernel(host, "bf16", sm=90)
    strided = Problem.random(replace(pair(2, 64, 9, 8, 64, 64, 3), first=Half(64, (1, 3), (0, 1), (2, 1))), "bf16")
    assert split_reason(host, strided) == "two kernels use Hopper's tensor cores, one does not"
    use_kernel(host, "fp32", sm=90)
    assert split_reason(host, Problem.random(pair(2, 64, 9, 8, 64, 64, 3), "fp32")) == ""


@pytest.mark.parametrize("kernel", ["bf16", "fp16"])
@pytest.mark.parametrize("channels", [192, 160], ids=["wide", "narrow"])
def test_bits_of_hopper_kernels(host, channels, kernel):
    """One kernel where it is expected to be faster, and the bits of two."""
    problem = Problem.random(pair(3, channels, 6, 4, channels, channels, 5), kernel)
    use_kernel(host, kernel, sm=90)
    assert split_reason(host, problem) == ""
    together = forward(host, problem)
    problem.check(together, "hopper")
    assert host.counted_kernels() == f"asymmetric_pair.forward.cuda_sm90_{kernel}=1\n"
    use_kernel(host, kernel, sm=90, multiprocessors=1000)
    assert split_reason(host, problem) == "two kernels are expected to be faster"
    assert torch.equal(forward(host, problem), together)
    assert host.counted_kernels() == f"conv2d_bn_act.forward.cuda_sm90_{kernel}=2\n"


def test_nothing_to_do(host):
    use_kernel(host, "bf16")
    problem = Problem.random(pair(0, 8, 5, 5, 8, 8, 3), "bf16")
    assert forward(host, problem).shape == (0, 8, 5, 5)
    assert host.counted_kernels() == ""


def test_reasons(host):
    problem = Problem.random(SHAPES["1x3_3x1"], "bf16")
    y = dense(problem.compute(torch.float32).bfloat16())
    given = arguments(host, problem)
    host.context(sm=80)
    assert host.unsupported(*given, y) == ""
    host.context(sm=75)
    assert host.unsupported(*given, y) == "compute capability below 8.0"


LAYER_DTYPES = tuple(KERNELS)
PAIRS = {str(each): each for each in distinct_pairs("inception_v3")}


@pytest.mark.parametrize("name", PAIRS)
def test_layers_of_inception_v3(host, name, layer_dtype):
    spec = PAIRS[name]

    def half(layer) -> Half:
        return Half(layer.out_channels, layer.kernel_size, layer.padding, layer.stride)

    shape = Shape(1, spec.first.in_channels, spec.first.height, spec.first.width, half(spec.first), half(spec.second))
    use_kernel(host, layer_dtype)
    problem = Problem.random(shape, layer_dtype, (spec.first.activation, spec.second.activation))
    problem.check(forward(host, problem), name)
    assert ran_as_one(host, layer_dtype) == (split_reason(host, problem) == "")
    assert layer_dtype not in ("bf16", "fp16") or ran_as_one(host, layer_dtype)
