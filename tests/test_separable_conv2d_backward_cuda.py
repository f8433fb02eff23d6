"""The gradients of separable_conv2d's convolutions on CUDA, executed on the host, against autograd in float64."""

from __future__ import annotations

import host_cuda
import pytest
import torch
import torch.nn.functional as F
from oracle import ACTIVATIONS, Sum, activate, assert_as_accurate_as_torch

from inception_kernels.models.layers import distinct_layers

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}

GEOMETRIES = {
    "3x3": dict(N=2, C=24, H=9, W=7, K=40, window=(3, 3), padding=1),
    "3x3_many_pixels": dict(N=2, C=16, H=19, W=17, K=24, window=(3, 3), padding=1),
    "3x3_odd_channels": dict(N=1, C=17, H=8, W=9, K=33, window=(3, 3), padding=1),
    "3x3_odd_outputs": dict(N=1, C=16, H=8, W=9, K=13, window=(3, 3), padding=1),
    "3x3_stride2": dict(N=2, C=40, H=13, W=11, K=24, window=(3, 3), stride=2, padding=1),
    "3x3_stride21": dict(N=2, C=7, H=9, W=13, K=9, window=(3, 3), stride=(2, 1), padding=1),
    "3x3_valid": dict(N=3, C=32, H=8, W=9, K=16, window=(3, 3)),
    "5x5": dict(N=2, C=8, H=9, W=8, K=16, window=(5, 5), padding=2),
    "7x7_stride2": dict(N=1, C=16, H=15, W=14, K=24, window=(7, 7), stride=2, padding=3),
    "1x1": dict(N=3, C=17, H=5, W=7, K=19, window=(1, 1)),
    "1x5": dict(N=2, C=16, H=6, W=9, K=8, window=(1, 5), padding=(0, 2)),
    "2x4_even": dict(N=2, C=8, H=8, W=9, K=16, window=(2, 4), padding=(1, 2), stride=(1, 2)),
    "dilated23_stride2": dict(N=2, C=24, H=12, W=13, K=16, window=(3, 3), padding=(1, 3), dilation=(2, 3), stride=2),
    "padding_beyond_window": dict(N=2, C=8, H=4, W=5, K=8, window=(3, 3), padding=4),
    "stride_over_window": dict(N=2, C=8, H=11, W=13, K=7, window=(2, 1), stride=(4, 3)),
    "one_pixel": dict(N=5, C=24, H=1, W=1, K=16, window=(3, 3), padding=1),
    "one_channel": dict(N=2, C=1, H=7, W=6, K=8, window=(3, 3), padding=1),
    "one_output": dict(N=2, C=8, H=7, W=6, K=1, window=(3, 3), padding=1),
    "two_tiles_of_channels": dict(N=1, C=136, H=4, W=5, K=8, window=(3, 3), padding=1),
    "two_tiles_of_outputs": dict(N=1, C=8, H=4, W=5, K=136, window=(3, 3), padding=1),
    "3x3_two_tiles_of_pixels": dict(N=1, C=72, H=25, W=12, K=8, window=(3, 3), padding=1),
    "5x5_two_tiles_of_pixels": dict(N=1, C=64, H=25, W=13, K=8, window=(5, 5), padding=2),
}
GRADIENTS = ("grad_x", "grad_depthwise_weight", "grad_pointwise_weight", "grad_depthwise_bias")


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


@pytest.fixture(scope="module")
def host():
    host = host_cuda.load("separable_conv2d_backward", checked=True, also=("conv2d_bn_act", "batch_norm"))
    host.context(sm=80, multiprocessors=2, allow_tf32=False)
    return host


def channels_last(t: torch.Tensor) -> torch.Tensor:
    """A channels-last copy whose strides are those of [N, H, W, C], whatever the sizes."""
    return t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class Case:
    def __init__(
        self, *, N, C, H, W, K, window, stride=1, padding=0, dilation=1, dtype=torch.float32, input_activation="none",
        mid_activation="none", bias=True, seed=0,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)

        def randn(*sizes: int) -> torch.Tensor:
            return torch.randn(*sizes, generator=generator)

        self.geometry = (pair(stride), pair(padding), pair(dilation))
        self.activations = (input_activation, mid_activation)
        self.dtype = dtype
        taps = window[0] * window[1]
        self.x = channels_last(randn(N, C, H, W).to(dtype))
        self.depthwise_weight = (randn(C, 1, *window) / taps**0.5).to(dtype)
        self.pointwise_weight = (randn(K, C, 1, 1) / C**0.5).to(dtype)
        self.depthwise_bias = 0.5 * randn(C) if bias else None
        sizes = self.forward([self.x.float()] + [t.float() for t in self.weights()])[1].shape
        self.grad_z = channels_last(randn(*sizes).to(dtype))

    def weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.depthwise_weight, self.pointwise_weight

    def forward(self, leaves: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        x, depthwise_weight, pointwise_weight = leaves[:3]
        bias = leaves[3] if len(leaves) > 3 else None
        stride, padding, dilation = self.geometry
        source = activate(x, self.activations[0])
        d = F.conv2d(source, depthwise_weight, bias, stride, padding, dilation, groups=x.shape[1])
        return d, F.conv2d(activate(d, self.activations[1]), pointwise_weight)

    def gradients(self, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """By autograd; and the gradient of the depthwise output."""
        tensors = [self.x, *self.weights(), *([] if self.depthwise_bias is None else [self.depthwise_bias])]
        leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
        d, z = self.forward(leaves)
        d.retain_grad()
        z.backward(self.grad_z.to(dtype))
        names = GRADIENTS if self.depthwise_bias is not None else GRADIENTS[:3]
        grads = {name: leaf.grad for name, leaf in zip(names, leaves, strict=True)}
        return grads, d.grad

    def empty(self, wanted: tuple[str, ...] = GRADIENTS) -> dict[str, torch.Tensor]:
        like = {
            "grad_x": self.x, "grad_depthwise_weight": self.depthwise_weight,
            "grad_pointwise_weight": self.pointwise_weight, "grad_depthwise_bias": torch.empty(self.x.shape[1]),
        }  # fmt: skip
        return {name: torch.full_like(like[name], float("nan")) for name in wanted}

    def call(self, host, results: dict[str, torch.Tensor]):
        return host.Call(
            self.grad_z, self.x, *self.weights(), self.depthwise_bias, *self.geometry, *self.activations, results
        )

    def run(self, host, wanted: tuple[str, ...] = GRADIENTS) -> dict[str, torch.Tensor]:
        results = self.empty(wanted)
        call = self.call(host, results)
        assert host.unsupported(call) is None
        host.backward(call, torch.full((host.workspace_bytes(call),), 0xFF, dtype=torch.uint8))
        return results


def check(case: Case, host) -> None:
    ours = case.run(host)
    exact, grad_d = case.gradients(torch.float64)
    torchs, _ = case.gradients(case.dtype)
    totals = {"grad_depthwise_bias": Sum.of(grad_d)}
    for name, gradient in exact.items():
        baseline = torchs[name].to(ours[name].dtype)
        assert_as_accurate_as_torch(
            ours[name], gradient, [baseline], name=name, total=totals.get(name), compute_dtype=case.dtype
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry(host, name, dtype):
    index = list(GEOMETRIES).index(name)
    check(
        Case(
            **GEOMETRIES[name],
            dtype=DTYPES[dtype],
            seed=index,
            bias=index % 3 != 1,
            input_activation=ACTIVATIONS[index % 5],
            mid_activation=ACTIVATIONS[index // 2 % 5],
        ),
        host,
    )


SMALL = dict(N=2, C=16, H=5, W=6, K=8, window=(3, 3), padding=1)


@pytest.mark.parametrize(("activation", "dtype"), [("none", "f32"), ("relu", "bf16")])
@pytest.mark.parametrize(
    ("size", "padding"), [((5, 4), 0), ((6, 7), (2, 1)), ((3, 9), (1, 2)), ((4, 5), 4), ((1, 1), 1), ((2, 33), (1, 0))]
)
def test_neighbours_share_a_window(host, size, padding, activation, dtype):
    """Stride and dilation 1 go another way: rows of any length, cut off anywhere."""
    padding = (max(pair(padding)[0], 3 - size[0]), pair(padding)[1])
    case = Case(
        N=2,
        C=72,
        H=size[0],
        W=size[1],
        K=8,
        window=(3, 3),
        padding=padding,
        dtype=DTYPES[dtype],
        input_activation=activation,
    )
    check(case, host)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("width", [6, 7, 9])
def test_infinite_pixels_reach_only_what_reads_them(host, width, dtype):
    """Neighbours that a row does not have leave no trace, whatever lies under their taps."""
    case = Case(**{**SMALL, "W": width}, dtype=DTYPES[dtype])
    case.x[0, 3, 2, -1] = float("inf")
    case.x[1, 5, -1, 0] = float("nan")
    ours, (exact, _) = case.run(host), case.gradients(torch.float64)
    for name, gradient in exact.items():
        assert torch.equal(ours[name].isfinite(), gradient.isfinite()), name
    assert not ours["grad_depthwise_weight"].isfinite().all()


def test_many_tiles_of_pixels(host):
    """More than one for each row of the block that adds them."""
    host.context(sm=80, multiprocessors=108)
    try:
        check(Case(N=3, C=64, H=24, W=61, K=8, window=(3, 3), padding=1, dtype=torch.bfloat16), host)
    finally:
        host.context(sm=80, multiprocessors=2)


@pytest.mark.parametrize("where", ["input_activation", "mid_activation"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_in_each_place(host, activation, where):
    case = Case(**SMALL, dtype=torch.bfloat16, **{where: activation})
    case.x = channels_last(case.x * 3)
    check(case, host)


@pytest.mark.parametrize("wanted", GRADIENTS)
def test_only_the_wanted_gradients(host, wanted):
    """Each gradient has the very bits it has when all are asked for."""
    case = Case(**SMALL, dtype=torch.bfloat16, input_activation="relu", mid_activation="silu")
    assert torch.equal(case.run(host, (wanted,))[wanted], case.run(host)[wanted])


@pytest.mark.parametrize("schedule", host_cuda.SCHEDULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_schedule_gives_the_same_bits(host, dtype, schedule):
    case = Case(**{**SMALL, "H": 19, "W": 11}, dtype=DTYPES[dtype], input_activation="relu")
    expected = case.run(host)
    for name, got in case.run(host.on(schedule)).items():
        assert torch.equal(got, expected[name]), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_image_in_any_batch(host, dtype):
    case = Case(**SMALL, dtype=DTYPES[dtype], input_activation="relu", mid_activation="relu")
    together = case.run(host, ("grad_x",))["grad_x"]
    for image in range(2):
        case.x, x = channels_last(case.x[image : image + 1]), case.x
        case.grad_z, grad_z = channels_last(case.grad_z[image : image + 1]), case.grad_z
        assert torch.equal(case.run(host, ("grad_x",))["grad_x"], together[image : image + 1])
        case.x, case.grad_z = x, grad_z


@pytest.mark.parametrize("more", [8, 3], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices(host, dtype, more):
    """Images and channels inside larger tensors of NaN; weights with gaps."""
    case = Case(**SMALL, dtype=DTYPES[dtype], input_activation="relu")

    def inside(t: torch.Tensor) -> torch.Tensor:
        N, C, H, W = t.shape
        whole = channels_last(torch.full((N, C + 2 * more, H + 2, W + 1), float("nan"), dtype=t.dtype))
        part = whole[:, more : more + C, 1 : 1 + H, :W]
        part.copy_(t)
        return part

    case.x, case.grad_z = inside(case.x), inside(case.grad_z)
    case.depthwise_weight, case.pointwise_weight = inside(case.depthwise_weight), inside(case.pointwise_weight)
    check(case, host)


def test_tf32_where_it_is_allowed(host):
    """As exact as a product whose factors are rounded to TF32."""
    case = Case(**{**SMALL, "H": 13, "W": 12}, bias=False)
    exact, _ = case.gradients(torch.float64)
    host.context(sm=80, multiprocessors=2, allow_tf32=True)
    try:
        ours = case.run(host)
    finally:
        host.context(sm=80, multiprocessors=2, allow_tf32=False)
    d, _ = case.forward([case.x, *case.weights()])
    product = torch.einsum("nkpq,ncpq->kc", tf32(case.grad_z).double(), tf32(d).double())
    for name, gradient in exact.items():
        error = (ours[name].double() - gradient).abs().max()
        assert error <= 2**-10 * gradient.abs().max(), name
    pointwise = "grad_pointwise_weight"
    assert_as_accurate_as_torch(ours[pointwise], exact[pointwise], [product[..., None, None].float()], name=pointwise)
    assert (ours[pointwise].double() - exact[pointwise]).abs().max() > 1e-5, "expected TF32's rounding"


def tf32(t: torch.Tensor) -> torch.Tensor:
    """To 10 bits of mantissa, to nearest with ties away from zero."""
    bits = t.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def counted_on_hopper(host, case: Case) -> str:
    host.context(sm=90, multiprocessors=2)
    host.reset_counted_kernels()
    try:
        check(case, host)
        return host.counted_kernels()
    finally:
        host.context(sm=80, multiprocessors=2)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_the_pointwise_part_on_hopper(host, dtype):
    """The data gradient is a convolution, the weight's gradient has a kernel of its own."""
    case = Case(**{**SMALL, "C": 72, "K": 64}, dtype=DTYPES[dtype], input_activation="relu", mid_activation="relu")
    counted = counted_on_hopper(host, case)
    assert f"separable_conv2d.backward.cuda_{dtype}=1" in counted
    assert f"separable_conv2d.backward.cuda_sm90_{dtype}=1" in counted
    assert "conv2d_bn_act.forward.cuda_sm90" in counted


def test_an_unaligned_gradient_on_hopper(host):
    """Hopper's kernel declines; the workspace has room for the parts of either."""
    case = Case(N=2, C=24, H=20, W=21, K=20, window=(3, 3), padding=1, dtype=torch.bfloat16)
    counted = counted_on_hopper(host, case)
    assert "separable_conv2d.backward.cuda_bf16=1" in counted
    assert "sm90" not in counted


def test_what_cannot_run_says_why(host):
    case = Case(**{**SMALL, "window": (9, 9), "padding": 4})
    call = case.call(host, case.empty())
    assert host.unsupported(call) == "a depthwise window of more than 64 taps"
    host.context(sm=75)
    try:
        assert host.unsupported(Case(**SMALL).call(host, {})) == "compute capability below 8.0"
    finally:
        host.context(sm=80, multiprocessors=2)


LAYER_DTYPES = tuple(DTYPES)
LAYERS = {str(layer): layer for layer in distinct_layers("xception") if layer.operator == "separable_conv2d"}


def check_layer(host, name: str, dtype: str, **device: int) -> None:
    layer = LAYERS[name]
    case = Case(
        N=1,
        C=layer.in_channels,
        H=layer.height,
        W=layer.width,
        K=layer.out_channels,
        window=pair(layer.kernel_size),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        dtype=DTYPES[dtype],
        input_activation=layer.input_activation,
        bias=False,
    )
    host.context(**device)
    try:
        check(case, host)
    finally:
        host.context(sm=80, multiprocessors=2)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_the_networks(host, name, layer_dtype):
    check_layer(host, name, layer_dtype, sm=80, multiprocessors=108)


def test_layers_of_the_networks_on_hopper(host, some_layer, layer_dtype):
    check_layer(host, some_layer, layer_dtype, sm=90, multiprocessors=132)
