"""The CUDA kernels of conv2d_bn_act for sm_80 and later, executed on the host."""

import re
from dataclasses import dataclass, replace

import host_cuda
import pytest
import torch
import torch.nn.functional as F
from cuda_tensors import dense, in_slice, to_tf32
from oracle import ACTIVATIONS, activate, assert_as_accurate_as_torch
from torch import Tensor

from inception_kernels.models.layers import distinct_layers
from tools.cubin_gates.names import demangle

KERNELS = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
ALSO = ("batch_norm",)  # combines the statistics of the tiles


@dataclass(frozen=True)
class Shape:
    N: int
    C: int
    H: int
    W: int
    K: int
    window: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def geometry(self) -> dict[str, tuple[int, int]]:
        return dict(window=self.window, stride=self.stride, padding=self.padding, dilation=self.dilation)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation)


SHAPES = {
    "1x1": Shape(1, 64, 9, 8, 72, (1, 1)),
    "1x1_one_step": Shape(2, 8, 3, 5, 8, (1, 1)),
    "1x1_stride_2": Shape(2, 40, 9, 7, 24, (1, 1), (2, 2)),
    "1x7": Shape(1, 48, 9, 11, 40, (1, 7), padding=(0, 3)),
    "7x1": Shape(3, 24, 8, 5, 136, (7, 1), padding=(3, 0)),
    "3x3": Shape(1, 80, 7, 6, 72, (3, 3), padding=(1, 1)),
    "3x3_stride_2": Shape(2, 32, 11, 13, 40, (3, 3), (2, 2)),
    "3x3_dilated": Shape(1, 16, 12, 9, 16, (3, 3), padding=(2, 3), dilation=(2, 3)),
    "5x5": Shape(1, 48, 6, 7, 64, (5, 5), padding=(2, 2)),
    "2x4_mixed": Shape(1, 24, 10, 9, 17, (2, 4), (1, 3), (1, 0), (3, 1)),
    "15x15": Shape(1, 8, 15, 14, 8, (15, 15), padding=(7, 7)),
    "window_of_the_image": Shape(2, 40, 3, 3, 9, (3, 3)),
    "padding_beyond_the_window": Shape(1, 8, 2, 3, 8, (1, 1), padding=(2, 1)),
    "3_channels": Shape(2, 3, 17, 15, 32, (3, 3), (2, 2)),
    "4_channels": Shape(1, 4, 9, 9, 33, (3, 3), padding=(1, 1)),
    "1_channel": Shape(1, 1, 9, 9, 5, (7, 7), (2, 2), (3, 3)),
    "20_channels": Shape(1, 20, 9, 9, 70, (1, 3), padding=(0, 1)),
    "5_outputs": Shape(1, 72, 5, 6, 5, (1, 1)),
}


@pytest.fixture(scope="module")
def host():
    return host_cuda.load("conv2d_bn_act", checked=True, also=ALSO)


@dataclass
class Problem:
    shape: Shape
    x: Tensor
    weight: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    activation: str = "none"
    tf32: bool = False

    @staticmethod
    def random(shape: Shape, kernel: str, *, epilogue: bool = True, seed: int = 0) -> "Problem":
        generator = torch.Generator().manual_seed(seed)
        dtype = KERNELS[kernel]

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator)

        fan_in = max(1, shape.C * shape.window[0] * shape.window[1])
        problem = Problem(
            shape,
            dense(normal(shape.N, shape.C, shape.H, shape.W).to(dtype)),
            (normal(shape.K, shape.C, *shape.window) / fan_in**0.5).to(dtype),
        )
        problem.tf32 = kernel == "tf32"
        if epilogue:
            problem.scale = normal(shape.K).abs() + 0.5
            problem.shift = normal(shape.K)
        return problem

    def output(self) -> Tensor:
        return self.compute(torch.float64).to(self.x.dtype).fill_(float("nan"))

    def compute(self, dtype: torch.dtype) -> Tensor:
        """In float64 the truth, in the problem's own dtype PyTorch's answer (TF32: it rounds the operands)."""

        def channels(v: Tensor) -> Tensor:
            return v.to(dtype).view(1, -1, 1, 1)

        x, weight = self.x.to(dtype), self.weight.to(dtype)
        if self.tf32 and dtype == torch.float32:
            x, weight = dense(to_tf32(x)), to_tf32(weight)
        y = self.shape.convolve(x, weight)
        y = y if self.scale is None else y * channels(self.scale)
        y = y if self.shift is None else y + channels(self.shift)
        y = y if self.residual is None else y + self.residual.to(dtype)
        return activate(y, self.activation)

    def check(self, y: Tensor, name: str) -> None:
        assert_as_accurate_as_torch(y, self.compute(torch.float64), [self.compute(y.dtype)], name=name)


def pack(host, weight: Tensor) -> Tensor:
    packed = torch.full((host.packed_bytes(weight) // weight.element_size(),), float("nan"), dtype=weight.dtype)
    host.pack(weight, packed)
    return packed


def use_kernel(host, kernel: str, multiprocessors: int = 2) -> None:
    host.context(sm=80, multiprocessors=multiprocessors, allow_tf32=kernel == "tf32")


def forward(host, problem: Problem, y: Tensor | None = None) -> Tensor:
    y = dense(problem.output()) if y is None else y
    p = problem
    packed = pack(host, p.weight)
    workspace = torch.empty(host.workspace_bytes(p.x, packed, p.shift, y, False, p.shape.geometry), dtype=torch.uint8)
    host.forward(p.x, packed, p.scale, p.shift, p.residual, p.activation, y, workspace, p.shape.geometry)
    return y


def forward_statistics(host, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    p, K = problem, problem.shape.K
    y, mean, var = dense(p.output()), torch.full((K,), float("nan")), torch.full((K,), float("nan"))
    packed = pack(host, p.weight)
    size = host.workspace_bytes(p.x, packed, p.shift, y, True, p.shape.geometry)
    workspace = torch.full((size,), 0xFF, dtype=torch.uint8)
    host.forward_statistics(p.x, packed, p.shift, y, mean, var, workspace, p.shape.geometry)
    return y, mean, var


def schedule_of(name: str) -> host_cuda.Schedule:
    """Every case has one of the schedules, so that all are used."""
    return host_cuda.SCHEDULES[list(SHAPES).index(name) % len(host_cuda.SCHEDULES)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(host, name, kernel):
    use_kernel(host, kernel)
    problem = Problem.random(SHAPES[name], kernel)
    y = forward(host.on(schedule_of(name)), problem)
    problem.check(y, f"{name} {kernel}")


# multiprocessors -> the tile that the cost favours: one must do all the work, or every tile has its own.
TILES = {
    "128x128": (1, Shape(2, 40, 14, 9, 120, (3, 3), padding=(1, 1))),
    "256x64": (1, Shape(3, 40, 9, 8, 56, (3, 3), padding=(1, 1))),
    "128x64": (1, Shape(1, 40, 9, 8, 56, (3, 3), padding=(1, 1))),
    "64x64": (1000, Shape(2, 40, 9, 8, 136, (3, 3), padding=(1, 1))),
    "128x64_gathered": (1, Shape(2, 37, 9, 8, 70, (3, 3), padding=(1, 1))),
    "256x32_gathered": (1, Shape(2, 3, 25, 27, 40, (7, 7), (2, 2), padding=(3, 3))),
}


@pytest.mark.parametrize("schedule", host_cuda.SCHEDULES, ids=str)
@pytest.mark.parametrize("kernel", ["bf16", "fp32"])
@pytest.mark.parametrize("tile", TILES)
def test_tiles_on_every_schedule(host, tile, kernel, schedule):
    multiprocessors, shape = TILES[tile]
    use_kernel(host, kernel, multiprocessors)
    problem = Problem.random(shape, kernel)
    problem.residual = dense(torch.randn_like(problem.output().float()).to(problem.x.dtype))
    problem.check(forward(host.on(schedule), problem), tile)


@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kernel", ["bf16", "fp16", "fp32"])
def test_activations(host, kernel, activation, with_residual):
    use_kernel(host, kernel)
    problem = Problem.random(Shape(1, 16, 8, 7, 24, (1, 3), padding=(0, 1)), kernel)
    problem.activation = activation
    problem.shift *= 3  # beyond 6 now and then
    if with_residual:
        problem.residual = dense(torch.randn_like(problem.output().float()).to(problem.x.dtype))
    problem.check(forward(host, problem), activation)


def test_nan_and_infinity_reach_the_output(host):
    use_kernel(host, "bf16")
    problem = Problem.random(Shape(1, 8, 4, 4, 8, (1, 1)), "bf16", epilogue=False)
    problem.weight = torch.eye(8, dtype=torch.bfloat16).view(8, 8, 1, 1)
    problem.x[0, 0, 0, 0] = float("nan")
    problem.x[0, 1, 1, 1] = float("inf")
    problem.x[0, 2, 2, 2] = -float("inf")
    for activation in ACTIVATIONS:
        problem.activation = activation
        y = forward(host, problem)
        exact = problem.compute(torch.float32)
        assert torch.equal(y.isnan(), exact.isnan()), activation
        assert torch.equal(y.isinf(), exact.isinf()), activation


@pytest.mark.parametrize("kernel", ["bf16", "fp32"])
@pytest.mark.parametrize("C", [8, 20])
def test_nan_stays_inside_its_windows(host, C, kernel):
    """Also where the last step goes beyond the window: the weights are 0 there, and 0 times NaN is NaN."""
    use_kernel(host, kernel)
    problem = Problem.random(Shape(1, C, 9, 8, 24, (3, 3), padding=(1, 1)), kernel)
    problem.x[0, 5, 4, 3] = float("nan")
    assert torch.equal(forward(host, problem).isnan(), problem.compute(torch.float64).isnan())


@pytest.mark.parametrize("kernel", ["bf16", "fp32"])
@pytest.mark.parametrize(("more", "first"), [(40, 16), (13, 0), (5, 3)], ids=["aligned", "odd_stride", "odd_offset"])
def test_slices_of_wider_tensors(host, kernel, more, first):
    use_kernel(host, kernel)
    problem = Problem.random(Shape(2, 24, 7, 6, 40, (3, 1), padding=(1, 0)), kernel)
    problem.x = in_slice(problem.x, more, first)
    problem.residual = in_slice(torch.randn_like(problem.output().float()).to(problem.x.dtype), more, first)
    problem.check(forward(host, problem, in_slice(problem.output(), more, first)), "slice")


def test_a_part_of_the_image(host):
    use_kernel(host, "bf16")
    shape = Shape(2, 16, 6, 5, 16, (3, 3), padding=(1, 1))
    problem = Problem.random(shape, "bf16")
    wide = torch.full((2, 16, 8, 9), float("nan"), dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    wide[:, :, 1:7, 2:7] = problem.x
    problem.x = wide[:, :, 1:7, 2:7]
    into = torch.full((2, 16, 7, 8), float("nan"), dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    problem.check(forward(host, problem, into[:, :, :6, 3:]), "part")


@pytest.mark.parametrize("kernel", KERNELS)
def test_bits_of_an_image_do_not_depend_on_its_batch(host, kernel):
    shape = Shape(5, 32, 9, 9, 72, (3, 3), padding=(1, 1))
    problem = Problem.random(shape, kernel)
    use_kernel(host, kernel, 1)
    together = forward(host, problem)
    use_kernel(host, kernel, 1000)
    alone = forward(host, replace(problem, shape=replace(shape, N=1), x=problem.x[3:4]))
    assert torch.equal(together[3:4], alone)


@pytest.mark.parametrize("kernel", ["bf16", "fp32"])
def test_weights_of_any_strides(host, kernel):
    use_kernel(host, kernel)
    problem = Problem.random(Shape(1, 12, 5, 5, 10, (3, 2)), kernel)
    packed = pack(host, problem.weight)
    rearranged = problem.weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    assert rearranged.stride() != problem.weight.stride()
    assert torch.equal(pack(host, rearranged), packed)
    part_of_a_larger_window = F.pad(problem.weight, (0, 3, 0, 1))[:, :, :3, :2]
    assert torch.equal(pack(host, part_of_a_larger_window), packed)
    expected = F.pad(problem.weight.permute(0, 2, 3, 1), (0, 4))
    assert torch.equal(packed.view(10, 3, 2, 16), expected)


STATISTICS = {
    "ragged": Shape(3, 40, 9, 8, 72, (3, 3), padding=(1, 1)),
    "one_tile": Shape(1, 16, 3, 3, 8, (1, 1)),
    "odd_channels": Shape(2, 3, 17, 15, 13, (3, 3), (2, 2)),
    "several_columns": Shape(2, 16, 9, 9, 200, (1, 1)),
}


@pytest.mark.parametrize("multiprocessors", [1, 1000])
@pytest.mark.parametrize("kernel", ["bf16", "fp32"])
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics(host, name, kernel, multiprocessors):
    use_kernel(host, kernel, multiprocessors)
    shape = STATISTICS[name]
    problem = Problem.random(shape, kernel)
    problem.scale = None
    problem.shift += 3
    check_statistics(host, problem, name)


def check_statistics(host, problem: Problem, name: str) -> None:
    y, mean, var = forward_statistics(host, problem)
    problem.check(y, name)
    assert torch.equal(y, forward(host, problem)), "the statistics do not change the output"
    z = y.double()
    exact_mean, exact_var = z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=False)
    z32 = y.float()
    torch_mean, torch_var = z32.mean((0, 2, 3)), z32.var((0, 2, 3), unbiased=False)
    assert_as_accurate_as_torch(mean, exact_mean, [torch_mean], name="mean")
    assert_as_accurate_as_torch(var, exact_var, [torch_var], name="var")


def test_empty_batch(host):
    use_kernel(host, "bf16")
    problem = Problem.random(Shape(0, 16, 5, 5, 8, (3, 3)), "bf16")
    assert forward(host, problem).shape == (0, 8, 3, 3)


def reason(host, problem: Problem) -> str:
    p = problem
    y = dense(p.output())
    return host.unsupported(p.x, p.weight, p.scale, p.shift, p.residual, p.activation, y, p.shape.geometry)


def test_reasons(host):
    problem = Problem.random(SHAPES["3x3"], "bf16")
    host.context(sm=80)
    assert reason(host, problem) == ""
    host.context(sm=75)
    assert reason(host, problem) == "compute capability below 8.0"
    host.context(sm=80)
    double = replace(problem, x=problem.x.double(), weight=problem.weight.double())
    assert reason(host, double) == "float64 runs on the reference backend"
    wide = Problem.random(Shape(1, 8, 3, 20, 8, (1, 16)), "bf16")
    assert reason(host, wide) == "a window side above 15"
    assert reason(host, Problem.random(Shape(1, 0, 3, 3, 8, (1, 1)), "bf16", epilogue=False)) == "no input channels"


def test_kernels_count_themselves(host):
    for kernel in KERNELS:
        use_kernel(host, kernel)
        host.reset_counted_kernels()
        forward(host, Problem.random(SHAPES["1x1_one_step"], kernel))
        assert host.counted_kernels() == f"conv2d_bn_act.forward.cuda_sm80_{kernel}=1\n"


@pytest.mark.parametrize("statistics", [False, True], ids=["forward", "statistics"])
def test_hopper_has_its_own_kernel(host, statistics):
    shape = Shape(1, 64, 8, 8, 64, (3, 3), padding=(1, 1))
    for kernel, ran in {"bf16": "sm90_bf16", "fp16": "sm90_fp16", "fp32": "sm80_fp32", "tf32": "sm80_tf32"}.items():
        host.context(sm=90, multiprocessors=2, allow_tf32=kernel == "tf32")
        host.reset_counted_kernels()
        problem = Problem.random(shape, kernel)
        problem.scale = None
        if statistics:
            forward_statistics(host, problem)
        else:
            problem.check(forward(host, problem), ran)
        assert host.counted_kernels() == f"conv2d_bn_act.forward.cuda_{ran}=1\n"


LAYERS = {
    str(layer): layer
    for network in ("inception_v3", "xception")
    for layer in distinct_layers(network)
    if layer.operator == "conv2d_bn_act"
}


LAYER_DTYPES = tuple(KERNELS)


def layer_problem(name: str, kernel: str) -> Problem:
    layer = LAYERS[name]
    shape = Shape(
        1, layer.in_channels, layer.height, layer.width, layer.out_channels,
        layer.kernel_size, layer.stride, layer.padding, layer.dilation,
    )  # fmt: skip
    problem = Problem.random(shape, kernel)
    problem.activation = layer.activation
    if layer.adds_residual:
        problem.residual = dense(torch.randn_like(problem.output().float()).to(problem.x.dtype))
    return problem


def test_layers_with_many_pixels_take_the_tiles_that_keep_the_tensor_cores_busy(host):
    """The smaller tiles, which read their operands more often, are for layers with few tiles for each multiprocessor."""
    use_kernel(host, "bf16", 108)
    launching = host.launching_only()
    launched = []
    for layer in LAYERS.values():
        shape = Shape(
            256, layer.in_channels, layer.height, layer.width, layer.out_channels,
            layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        )  # fmt: skip
        one = torch.empty(max(shape.C, shape.K), dtype=torch.bfloat16)
        x = one.as_strided((256, shape.C, shape.H, shape.W), (0, 1, 0, 0))
        y = one.as_strided((256, shape.K, *layer.output_size), (0, 1, 0, 0))
        packed = torch.empty(shape.K * shape.window[0] * shape.window[1] * max(8, shape.C), dtype=torch.bfloat16)
        launching.forward(x, packed, None, None, None, "none", y, torch.empty(0, dtype=torch.uint8), shape.geometry)
        launched += launching.launched
    assert len(launched) == len(LAYERS)
    names = " ".join(demangle([each.kernel for each in launched]))
    assert set(re.findall(r"VectorLoader<TileShape<(\d+), (\d+)", names)) == {("128", "128"), ("256", "64")}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_the_networks(host, name, layer_dtype):
    use_kernel(host, layer_dtype, 108)
    problem = layer_problem(name, layer_dtype)
    problem.check(forward(host, problem), name)


def test_statistics_of_the_networks_layers(host, some_layer, layer_dtype):
    use_kernel(host, layer_dtype, 108)
    problem = layer_problem(some_layer, layer_dtype)
    problem = replace(problem, scale=None, shift=None, residual=None, activation="none")
    check_statistics(host, problem, some_layer)
