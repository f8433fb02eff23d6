"""The separable convolution in the other order, against float64 and PyTorch."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_as_accurate, needs_kernels
from operator_cases import LAYOUTS, in_layout
from torch import Tensor

import inception_kernels as ik
from inception_kernels import backends, reference

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    needs_kernels,
]

DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
GEOMETRIES = {
    "plain": dict(N=2, C=5, K=7, H=9, W=8, padding=1),
    "vectors_and_tails": dict(N=1, C=33, K=40, H=12, W=17, padding=1),
    "stride2": dict(N=2, C=19, K=35, H=12, W=17, stride=2, padding=1),
    "5x3": dict(N=3, C=12, K=70, H=13, W=11, window=(5, 3), padding=(2, 1)),
    "dilated": dict(N=1, C=8, K=20, H=13, W=12, dilation=2, padding=2),
    "no_padding": dict(N=2, C=8, K=20, H=7, W=6),
    "wide_padding": dict(N=1, C=8, K=20, H=5, W=4, padding=3),
    "one_pixel": dict(N=3, C=8, K=20, H=1, W=1, padding=1),
    "no_window": dict(N=2, C=8, K=20, H=5, W=4, window=(1, 1)),
    "shared_image": dict(N=1, C=8, K=256, H=35, W=36, padding=1),
    "bands": dict(N=1, C=8, K=512, H=45, W=46, padding=1),
    "bands_stride2": dict(N=1, C=8, K=512, H=46, W=45, padding=1, stride=2),
}


def case(N, C, K, H, W, window=(3, 3), dtype=torch.float32, bn=True, seed=0, **options):
    g = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=g) * scale).to(dtype)

    tensors = {
        "x": random(N, C, H, W),
        "pointwise_weight": random(K, C, 1, 1, scale=C**-0.5),
        "depthwise_weight": random(K, 1, *window, scale=(window[0] * window[1]) ** -0.5),
    }
    if bn:
        tensors |= {"bn_weight": random(K), "bn_bias": random(K), "running_mean": random(K)}
        tensors["running_var"] = random(K).abs() + 0.5
    return tensors, options


def check(tensors: dict[str, Tensor], **options) -> None:
    with torch.no_grad(), backends.use_backend("cpu"):
        ours = ik.pointwise_depthwise_conv2d(**tensors, **options)
    baseline = reference.pointwise_depthwise_conv2d(**tensors, **options)
    exact = reference.pointwise_depthwise_conv2d(**{n: t.double() for n, t in tensors.items()}, **options)
    for format in (torch.channels_last, torch.contiguous_format):
        assert ours.is_contiguous(memory_format=format) == baseline.is_contiguous(memory_format=format)
    assert_as_accurate(ours, baseline, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_core_geometry(name, dtype):
    tensors, options = case(**GEOMETRIES[name], dtype=DTYPES[dtype])
    tensors["x"] = tensors["x"].to(memory_format=torch.channels_last)
    check(tensors, mid_activation="elu", activation="relu", **options)


@pytest.mark.parametrize("bn", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "elu", "silu"])
def test_epilogue(activation, bn):
    tensors, options = case(**GEOMETRIES["vectors_and_tails"], bn=bn)
    check(tensors, mid_activation=activation, activation=activation, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    tensors, options = case(**GEOMETRIES["vectors_and_tails"])
    x = in_layout(tensors.pop("x"), layout)
    expected = ik.pointwise_depthwise_conv2d(x.contiguous(), **tensors, **options)
    assert torch.equal(ik.pointwise_depthwise_conv2d(x, **tensors, **options), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["plain", "stride2", "shared_image", "bands", "bands_stride2"])
def test_thread_count_and_batch_do_not_matter(name, dtype):
    tensors, options = case(**{**GEOMETRIES[name], "N": 3}, dtype=DTYPES[dtype])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(ik.pointwise_depthwise_conv2d(**tensors, **options))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
    one = ik.pointwise_depthwise_conv2d(**{**tensors, "x": tensors["x"][1:2]}, **options)
    assert torch.equal(one, results[0][1:2])


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_instruction_set(stride, dtype, isa, use_isa):
    use_isa(isa)
    tensors, options = case(**{**GEOMETRIES["vectors_and_tails"], "stride": stride}, dtype=DTYPES[dtype])
    backends.reset_counters()
    check(tensors, mid_activation="relu", **options)
    assert backends.counters()[f"pointwise_depthwise_conv2d.forward.cpu_{isa}_{dtype}"] == 1


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_gradients_run_as_two_operators(dtype, training):
    tensors, options = case(**GEOMETRIES["vectors_and_tails"], dtype=DTYPES[dtype], mid_activation="elu")

    def gradients(backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = {n: t.to(dtype, copy=True).requires_grad_("running" not in n) for n, t in tensors.items()}
        with backends.use_backend(backend):
            y = ik.pointwise_depthwise_conv2d(**leaves, **options, training=training)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).bfloat16().to(dtype)
        y.backward(grad)
        found = {n: t.grad if t.requires_grad else t for n, t in leaves.items()}
        return found | {"y": y.detach()}

    exact = gradients("reference", torch.float64)
    baseline, ours = gradients("reference", DTYPES[dtype]), gradients("cpu", DTYPES[dtype])
    for name, true in exact.items():
        assert_as_accurate(ours[name], baseline[name], true, name)


def test_counters_say_which_way_it_went():
    tensors, options = case(**GEOMETRIES["plain"])
    backends.reset_counters()
    ik.pointwise_depthwise_conv2d(**tensors, **options)
    assert not any("conv2d_bn_act" in name for name in backends.counters())
    assert backends.last_choice() == backends.Choice("pointwise_depthwise_conv2d", "cpu")
    tensors["x"].requires_grad_()
    backends.reset_counters()
    ik.pointwise_depthwise_conv2d(**tensors, **options)
    assert not any(name.startswith("pointwise_depthwise") for name in backends.counters())
    with torch.no_grad():
        ik.pointwise_depthwise_conv2d(**tensors, **options)
    assert any(name.startswith("pointwise_depthwise") for name in backends.counters())


def test_nothing_to_do_and_batch_zero():
    tensors, options = case(**{**GEOMETRIES["plain"], "N": 0})
    assert ik.pointwise_depthwise_conv2d(**tensors, **options).shape == (0, 7, 9, 8)


def test_one_nan_pixel_stays_in_its_windows():
    tensors, options = case(**GEOMETRIES["vectors_and_tails"])
    clean = ik.pointwise_depthwise_conv2d(**tensors, **options)
    tensors["x"][0, 2, 4, 5] = float("nan")
    dirty = ik.pointwise_depthwise_conv2d(**tensors, **options)
    window = torch.zeros_like(clean, dtype=torch.bool)
    window[:, :, 3:6, 4:7] = True
    assert torch.equal(dirty.isnan(), window)
    assert torch.equal(dirty[~window], clean[~window])


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (dict(pointwise_weight=torch.ones(7, 5, 3, 3)), ValueError, "pointwise_weight: expected"),
        (dict(pointwise_weight=torch.ones(7, 4, 1, 1)), ValueError, "pointwise_weight: expected"),
        (dict(depthwise_weight=torch.ones(6, 1, 3, 3)), ValueError, "depthwise_weight: expected"),
        (dict(depthwise_weight=torch.ones(7, 1, 3, 3).double()), TypeError, "depthwise_weight: expected"),
        (dict(depthwise_weight=torch.ones(7, 1, 13, 3)), ValueError, "window no larger"),
        (dict(mid_activation="gelu"), ValueError, "mid_activation"),
        (dict(bn_weight=torch.ones(6)), ValueError, "bn_weight"),
        (dict(stride=0), ValueError, "stride"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments(changed, error, message):
    tensors, options = case(**GEOMETRIES["plain"])
    with pytest.raises(error, match=message):
        ik.pointwise_depthwise_conv2d(**{**tensors, **options, **changed})


def test_direct_calls_are_guarded():
    tensors, _ = case(**GEOMETRIES["plain"], bn=False)
    x, pointwise, depthwise = tensors.values()
    op = torch.ops.inception_kernels.pointwise_depthwise_conv2d
    rest = (None, None, None, None, [1, 1], [1, 1], [1, 1], "none", "none", 1e-5)
    for bad in ((x[0], pointwise, depthwise), (x, depthwise, depthwise), (x, pointwise, depthwise[:3])):
        with pytest.raises(RuntimeError, match="expected"):
            op(*bad, *rest)
    with pytest.raises(RuntimeError, match="in two operators"):
        op(x.requires_grad_(), pointwise, depthwise, *rest).sum().backward()


def test_opcheck_and_one_graph():
    tensors, _ = case(**GEOMETRIES["plain"])
    arguments = (*tensors.values(), [1, 1], [1, 1], [1, 1], "relu", "none", 1e-5)
    torch.library.opcheck(torch.ops.inception_kernels.pointwise_depthwise_conv2d.default, arguments)
    compiled = torch.compile(ik.pointwise_depthwise_conv2d, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**tensors, padding=1), ik.pointwise_depthwise_conv2d(**tensors, padding=1))
