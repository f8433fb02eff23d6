"""The operator that runs a program: every step against float64, refusal of malformed programs, threads and batches."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_as_accurate, needs_kernels
from instruction_sets import runs_here, without_bf16_products
from operator_cases import LAYOUTS, in_layout
from torch import Tensor, fx, nn

from inception_kernels import backends
from inception_kernels.graph.encode import Constants, encode
from inception_kernels.graph.layout import CACHE_BYTES, schedule
from inception_kernels.graph.partition import partition
from inception_kernels.graph.steps import AveragePool, Concatenate, Convolution, Elementwise, MaxPool, Separable

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    needs_kernels,
]

DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
RUN = torch.ops.inception_kernels.run_program


def program_of(
    graph: fx.GraphModule, inputs: list[Tensor], cache_bytes: int = CACHE_BYTES
) -> tuple[Tensor, Tensor, list[int]]:
    """Of a graph that is one segment."""
    (segment,) = partition(graph)
    dtype = inputs[0].dtype
    shapes = {node: tuple(x.shape) for node, x in zip(segment.inputs, inputs, strict=True)}
    scattered = frozenset(
        node for node, x in zip(segment.inputs, inputs, strict=True) if x.shape[1] > 1 and x.stride(1) != 1
    )
    constants = Constants(dtype)
    plan = schedule(graph, segment.nodes, shapes, segment.outputs, scattered, dtype.itemsize, cache_bytes)
    program, sizes = encode(plan, constants, dtype.itemsize)
    return program, constants.buffer, sizes


def graph_of(step: nn.Module, inputs: int) -> fx.GraphModule:
    graph, root = fx.Graph(), nn.Module()
    root.add_module("step", step)
    nodes = [graph.placeholder(f"x{i}") for i in range(inputs)]
    graph.output((graph.call_module("step", tuple(nodes)),))
    return fx.GraphModule(root, graph)


def run(step: nn.Module, *inputs: Tensor) -> Tensor:
    (y,) = RUN(list(inputs), *program_of(graph_of(step, len(inputs)), list(inputs)))
    return y


def check(step: nn.Module, *inputs: Tensor) -> None:
    exact = step.double()(*(x.double() for x in inputs))
    baseline = step.to(inputs[0].dtype)(*inputs)
    y = run(step, *inputs)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_as_accurate(y, baseline, exact)


def vector(length: int, seed: int) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(dtype: torch.dtype, *shapes: tuple[int, ...], layout: str = "channels_last") -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [in_layout(torch.randn(shape, generator=g).to(dtype), layout) for shape in shapes]


POOLS = {
    "max": MaxPool((3, 3), (2, 2), (0, 0), (1, 1), False),
    "max_padded": MaxPool((3, 3), (2, 2), (1, 1), (1, 1), False),
    "max_ceil": MaxPool((3, 2), (2, 3), (0, 1), (1, 1), True),
    "max_dilated": MaxPool((3, 3), (1, 2), (1, 1), (2, 3), False),
    "average": AveragePool((3, 3), (1, 1), (1, 1)),
    "average_excludes_padding": AveragePool((3, 3), (1, 1), (1, 1), count_include_pad=False),
    "average_ceil": AveragePool((3, 3), (2, 2), (1, 1), ceil_mode=True),
    "average_ceil_excludes": AveragePool((3, 2), (2, 2), (1, 1), ceil_mode=True, count_include_pad=False),
    "average_divisor": AveragePool((2, 3), (2, 1), divisor=5),
    "average_whole": AveragePool(None),
}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("channels", [1, 7, 64, 131])
@pytest.mark.parametrize("name", POOLS)
def test_pools(name, channels, dtype):
    check(POOLS[name], *images(dtype, (2, channels, 11, 10)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_any_layout(layout):
    for step in (POOLS["max"], POOLS["average"], Elementwise(activation="relu")):
        check(step, *images(torch.float32, (2, 5, 9, 8), layout=layout))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_maximum_of_nan_and_infinity(dtype):
    (x,) = images(dtype, (1, 70, 9, 9))
    bits = x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    for c in (3, 40, 69):  # among whole vectors of channels and the rest
        x[0, c, 4, 4] = float("nan")
        bits[0, c - 1, 4, 4] = -1  # NaN with a sign
        x[0, c - 2, 2, 2] = float("inf")
        x[0, c - 3] = -float("inf")
    step = POOLS["max_padded"]
    assert torch.equal(run(step, x).isnan(), step(x).isnan())
    assert torch.equal(run(step, x).nan_to_num(), step(x).nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "elu", "silu"])
def test_elementwise(activation, dtype):
    shape = (2, 35, 6, 7)
    check(Elementwise(vector(35, 1), vector(35, 2), activation), *images(dtype, shape))
    check(Elementwise(vector(35, 1), None, activation), *images(dtype, shape, shape))
    check(Elementwise(None, None, activation), *images(dtype, shape, shape))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_convolutions_and_a_pool_with_an_epilogue(dtype):
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 13, 3, 3, generator=g).to(dtype) / 10
    dense = Convolution(weight, (2, 1), (1, 0), (1, 1), vector(24, 1), vector(24, 2), "relu")
    check(dense, *images(dtype, (2, 13, 9, 8), (2, 24, 5, 6)))
    separable = Separable(
        torch.randn(13, 1, 3, 3, generator=g).to(dtype) / 3, vector(13, 3),
        torch.randn(24, 13, 1, 1, generator=g).to(dtype) / 4, (1, 1), (1, 1), (1, 1), "relu", vector(24, 4), None,
    )  # fmt: skip
    separable.input_activation = "relu"
    check(separable, *images(dtype, (2, 13, 9, 8), (2, 24, 9, 8)))
    pool = AveragePool((3, 3), (1, 1), (1, 1))
    pool.shift, pool.activation = vector(13, 5), "relu"
    check(pool, *images(dtype, (2, 13, 9, 8), (2, 13, 9, 8)))


@pytest.mark.parametrize(("window", "C", "size"), [((3, 3), 65, 9), ((5, 5), 33, 11), ((1, 7), 129, 9)], ids=str)
def test_convolutions_of_small_images(window, C, size):
    """Their weights are packed for larger ones."""
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(70, C, *window, generator=g) / 30
    step = Convolution(weight, (1, 1), (window[0] // 2, window[1] // 2), (1, 1), vector(70, 1), vector(70, 2), "relu")
    backends.reset_counters()
    check(step, *images(torch.float32, (2, C, size, size), (2, 70, size, size)))
    isa = without_bf16_products(backends.cpu_isa())
    assert backends.counters() == {f"conv2d_bn_act.forward.cpu_{isa}_f32_restored": 1}


def test_kernels_count_themselves():
    backends.reset_counters()
    run(POOLS["max"], *images(torch.float32, (1, 5, 9, 9)))
    isa = without_bf16_products(torch.ops.inception_kernels._cpu_isa())
    assert backends.counters() == {f"run_program.max_pool.cpu_{isa}_f32": 1}


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set_below_the_best(isa):
    if not runs_here(isa):
        pytest.skip(f"this processor has no {isa}")
    selected = "test_pools and (7 or 131) or test_elementwise or test_maximum"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-q", "-k", selected, "-p", "no:cacheprovider"],
        env=os.environ | {"IK_CPU_ISA": isa}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]


# ---- a network of steps


class Level(nn.Module):
    """Branches of a level into one concatenation, with a sum and a pool behind it."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(2)

        def conv(K: int, C: int, window: int) -> Convolution:
            weight = torch.randn(K, C, window, window, generator=g).to(dtype) / (C**0.5 * window)
            half = window // 2
            return Convolution(weight, (1, 1), (half, half), shift=vector(K, K), activation="relu")

        self.a, self.b, self.c, self.d = conv(16, 10, 1), conv(24, 10, 3), conv(20, 24, 3), conv(10, 36, 1)
        self.cat, self.sum, self.pool = Concatenate(), Elementwise(), MaxPool((3, 3), (2, 2), (0, 0), (1, 1), False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.d(self.cat(self.a(x), self.c(self.b(x))))
        return self.pool(self.sum(y, x))


def level(dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    class Leaves(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return True

    model = Level(dtype)
    graph = Leaves().trace(model)
    returned = next(node for node in graph.nodes if node.op == "output")
    returned.args = ((returned.args[0],),)
    return fx.GraphModule(model, graph)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_level(dtype):
    (x,) = images(dtype, (3, 10, 13, 12))
    graph = level(dtype)
    (y,) = RUN([x], *program_of(graph, [x]))
    exact = level(torch.float64)
    for wide, narrow in zip(exact.children(), graph.children(), strict=True):
        if isinstance(narrow, Convolution):
            wide.weight = narrow.weight.double()
    assert_as_accurate(y, graph(x)[0], exact(x.double())[0])


def test_bits_do_not_depend_on_threads_or_batch():
    (x,) = images(torch.float32, (5, 10, 23, 22))
    graph, threads = level(), torch.get_num_threads()
    call = program_of(graph, [x])
    try:
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(RUN([x], *call)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)
    for i in range(5):
        one = x[i : i + 1].contiguous(memory_format=torch.channels_last)
        assert torch.equal(RUN([one], *program_of(graph, [one]))[0], results[0][i : i + 1])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_slice"])
@pytest.mark.parametrize("cache_bytes", [0, 45_000, 10_000_000])
def test_image_by_image_gives_the_same_bits(layout, cache_bytes):
    """All steps, some, and none of them."""
    (x,) = images(torch.float32, (5, 10, 23, 22))
    graph = level()
    whole = RUN([x], *program_of(graph, [x]))[0]
    given = in_layout(x, layout)
    program, constants, sizes = program_of(graph, [given], cache_bytes)
    steps = (program.numel() - 5) // 48
    assert (steps > 8) == (cache_bytes < 10_000_000)
    assert torch.equal(RUN([given], program, constants, sizes)[0], whole)


def test_an_empty_batch():
    x = torch.empty(0, 10, 13, 12).to(memory_format=torch.channels_last)
    (y,) = RUN([x], *program_of(level(), [x]))
    assert y.shape == (0, 10, 6, 5)


def test_times_of_steps():
    (x,) = images(torch.float32, (1, 10, 13, 12))
    seconds = torch.ops.inception_kernels.time_program([x], *program_of(level(), [x]))
    assert seconds.shape == (6,)
    assert (seconds > 0).all()


def test_opcheck():
    (x,) = images(torch.float32, (2, 10, 13, 12))
    torch.library.opcheck(RUN, ([x], *program_of(level(), [x])), test_utils=("test_schema", "test_faketensor"))


# ---- what is refused


def test_malformed_calls():
    (x,) = images(torch.float32, (2, 10, 13, 12))
    program, constants, sizes = program_of(level(), [x])
    for call, message in (
        (([], program, constants, sizes), "at least one tensor"),
        (([x], program[:-1], constants, sizes), "numbers for each of its 6 steps"),
        (([x], program[:3], constants, sizes), "at least 5 numbers"),
        (([x], program.int(), constants, sizes), "int64 vector"),
        (([x], program + 1, constants, sizes), "version"),
        (([x], program, constants[:-64], sizes), "outside of the constants"),
        (([x], program, constants.float(), sizes), "uint8 vector"),
        (([x.bfloat16()], program, constants, sizes), "another dtype"),
        (([x[:, :, 1:]], program, constants, sizes), "another shape"),
        (([x[:, 1:]], program, constants, sizes), "too few channels"),
        (([x], program, constants, [2, 10, 6, 4]), "leaves its memory"),
        (([x], program, constants, sizes * 2), "no step writes output 1"),
        (([x], program, constants, sizes[:3]), "N, C, H, W of every output"),
        (([x], program, torch.zeros_like(constants), sizes), "not written by a pack function"),
    ):
        with pytest.raises(RuntimeError, match=message):
            RUN(*call)


def test_no_number_of_a_program_makes_it_leave_its_memory():
    """Any one number replaced: the program is refused, or runs (and then may compute something else)."""
    (x,) = images(torch.float32, (1, 10, 9, 8))
    program, constants, sizes = program_of(level(), [x])
    generator, refused = random.Random(0), 0
    values = [-(2**62), -1, 0, 1, 2, 7, 64, 1000, 2**31, 2**40, 2**62]
    for position in range(program.numel()):
        for value in generator.sample(values, 4):
            changed = program.clone()
            changed[position] = value
            if torch.equal(changed, program) or (position == 3 and 2**31 <= value <= 2**40):
                continue  # an arena of a terabyte is legal
            try:
                RUN([x], changed, constants, sizes)
            except RuntimeError:
                refused += 1
    assert refused > program.numel()


def test_a_convolution_into_channels_of_another_tensor_leaves_the_rest():
    """Branches are written in place: what is beside them stays."""
    (x,) = images(torch.float32, (1, 10, 9, 8))
    graph = level()
    full = F.conv2d(x, graph.a.weight, graph.a.shift.float()).relu()
    graph.graph.eliminate_dead_code()
    nodes = {node.target: node for node in graph.graph.nodes}
    returned = next(node for node in graph.graph.nodes if node.op == "output")
    returned.args = ((nodes["cat"],),)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    (y,) = RUN([x], *program_of(graph, [x]))
    assert_as_accurate(y[:, :16], full, graph.double()(x.double())[0][:, :16])
    assert_as_accurate(y, graph.float()(x)[0], graph.double()(x.double())[0])
