"""asymmetric_pair against float64, forward and backward, on every backend that runs on the host."""

import pytest
import torch
from operator_cases import DTYPES, LAYOUTS, check, evaluate_on, in_layout, pair_case, run
from oracle import ACTIVATIONS, assert_as_accurate_as_torch

import inception_kernels as ik
from inception_kernels.ops.prepared import PreparedAsymmetricPair

pytestmark = pytest.mark.usefixtures("poisoned_memory")

BACKENDS = ("reference", "cpu")
MODES = {"eval": False, "train": True}

GEOMETRIES = {
    "1x7_7x1": dict(N=2, C=17, H=9, W=8, M=20, K=33, windows=((1, 7), (7, 1)), padding1=(0, 3), padding2=(3, 0)),
    "7x1_1x7": dict(N=1, C=33, H=8, W=9, M=32, K=16, windows=((7, 1), (1, 7)), padding1=(3, 0), padding2=(0, 3)),
    "1x3_3x1": dict(N=3, C=16, H=7, W=5, M=17, K=18),
    "3x1_1x3": dict(N=2, C=8, H=5, W=7, M=9, K=10, windows=((3, 1), (1, 3)), padding1=(1, 0), padding2=(0, 1)),
    "1x5_5x1_valid": dict(N=2, C=5, H=9, W=11, M=6, K=7, windows=((1, 5), (5, 1)), padding1=0, padding2=0),
    "1x2_2x1_even": dict(N=2, C=5, H=6, W=7, M=6, K=7, windows=((1, 2), (2, 1)), padding1=(0, 1), padding2=(1, 0)),
    "1x4_3x1": dict(N=2, C=5, H=6, W=7, M=6, K=7, windows=((1, 4), (3, 1)), padding1=(0, 2), padding2=(0, 0)),
    "padding_across": dict(N=2, C=5, H=6, W=7, M=6, K=7, padding1=(1, 1), padding2=(2, 1)),
    "window_over_image": dict(N=2, C=5, H=2, W=3, M=6, K=7, windows=((1, 7), (7, 1)), padding1=(0, 3), padding2=(3, 0)),
    "one_pixel": dict(N=5, C=19, H=1, W=1, M=21, K=22),
    "channels_1": dict(N=2, C=1, H=5, W=6, M=1, K=1),
    "m1": dict(N=2, C=17, H=5, W=6, M=1, K=3),
    "prime_sizes": dict(N=1, C=13, H=19, W=37, M=11, K=29),
    "wide": dict(N=1, C=130, H=5, W=6, M=67, K=97),
}  # fmt: skip


def rotated(index: int) -> dict:
    """Activations and biases that go with the index-th geometry."""
    return dict(
        mid_activation=ACTIVATIONS[(index + 1) % 5],
        activation=ACTIVATIONS[(index // 2) % 5],
        bias=index % 2 == 0,
        eps=(1e-5, 1e-3)[index % 2],
        momentum=(0.1, 0.3)[index % 2],
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_core_geometry(name, dtype, mode, backend):
    index = list(GEOMETRIES).index(name)
    case = pair_case(**GEOMETRIES[name], **rotated(index), dtype=DTYPES[dtype], training=MODES[mode], seed=index)
    if index % 4:
        case = case.but(x=in_layout(case.tensors["x"], "channels_last"))
    check(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", ["mid_activation", "activation"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_in_each_place(activation, where, mode, backend):
    case = pair_case(C=9, M=10, K=19, training=MODES[mode], seed=5, **{where: activation})
    far = {name: case.tensors[name] * 4 for name in ("bn_weight1", "bn_weight2")}  # passes relu6's upper kink
    check(case.but(**far), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("without", [("1",), ("2",), ("1", "2")], ids="".join)
def test_without_batch_norm(without, mode, backend):
    case = pair_case(bias=True, training=MODES[mode])
    fields = ("bn_weight", "bn_bias", "running_mean", "running_var")
    check(case.but(**{name + i: None for name in fields for i in without}), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_float32_batch_norm_with_low_precision_input(dtype, mode, backend):
    case = pair_case(
        N=3, C=33, H=8, W=9, M=34, K=35, dtype=DTYPES[dtype], bn_dtype=torch.float32, training=MODES[mode],
        mid_activation="silu",
    )  # fmt: skip
    check(case, backend)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, mode):
    case = pair_case(N=3, C=8, M=17, K=18, training=MODES[mode])
    # one value everywhere in x and in the gradient would round all terms of a sum the same way
    grad_layout = "expanded_batch" if layout == "expanded_everywhere" else layout
    check(case.but(x=in_layout(case.tensors["x"], layout)), "cpu", grad_layout=grad_layout)


@pytest.mark.parametrize("wanted", [("x",), ("weight1",), ("weight2",), ("bn_weight1", "bias2")])
@pytest.mark.parametrize("mode", MODES)
def test_only_the_wanted_gradients(mode, wanted):
    """Each subset of gradients has the very bits it has when all are asked for."""
    from dataclasses import replace

    case = pair_case(M=17, K=18, bias=True, training=MODES[mode])
    grad_y = torch.randn(2, 18, 7, 9, generator=torch.Generator().manual_seed(1))
    everything = evaluate_on("cpu", case, grad_y).grads
    leaves = {n: t.clone().requires_grad_(n in wanted) for n, t in case.tensors.items()}
    y = run(replace(case, tensors=leaves), "cpu")
    grads = torch.autograd.grad(y, [leaves[n] for n in wanted], grad_y)
    for name, grad in zip(wanted, grads, strict=True):
        assert torch.equal(grad, everything[name]), name


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("mode", MODES)
def test_equals_two_convolutions(mode, dtype):
    """The pair computes what two conv2d_bn_act calls compute, to rounding."""
    case = pair_case(C=9, M=17, K=18, dtype=DTYPES[dtype], training=MODES[mode])
    outcome = check(case, "cpu", backward=False)
    t = {n: v.clone() for n, v in case.tensors.items()}
    fields = ("bn_weight", "bn_bias", "running_mean", "running_var")
    options = dict(activation="relu", training=MODES[mode])
    with ik.use_backend("cpu"):
        mid = ik.conv2d_bn_act(t["x"], t["weight1"], *(t[f + "1"] for f in fields), padding=(0, 1), **options)
        y = ik.conv2d_bn_act(mid, t["weight2"], *(t[f + "2"] for f in fields), padding=(1, 0), **options)
    torch.testing.assert_close(outcome.y, y, rtol=0, atol=16 * torch.finfo(y.dtype).eps * y.abs().max().item())
    for name, value in outcome.statistics.items():
        torch.testing.assert_close(value, t[name], rtol=16 * torch.finfo(y.dtype).eps, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_prepared_is_as_accurate_as_pytorch(name, dtype):
    case = pair_case(**GEOMETRIES[name], **rotated(list(GEOMETRIES).index(name)), dtype=DTYPES[dtype])
    t = case.tensors
    options = {key: value for key, value in case.options.items() if key not in ("training", "momentum")}

    def arguments(exactly: bool) -> tuple:
        here = {key: value.double() if exactly and value is not None else value for key, value in t.items()}
        bn = [tuple(here[f + n] for f in ("bn_weight", "bn_bias", "running_mean", "running_var")) for n in "12"]
        return here["x"], here["weight1"], here["weight2"], *bn, here.get("bias1"), here.get("bias2")

    with ik.use_backend("reference"):
        exact = ik.asymmetric_pair(*arguments(True), **options)
        torchs = ik.asymmetric_pair(*arguments(False), **options)
    x, *rest = arguments(False)
    y = PreparedAsymmetricPair(*rest, **options)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_as_accurate_as_torch(y, exact, [torchs], name="output")


def test_prepared_refuses_what_does_not_fit():
    pair = PreparedAsymmetricPair(torch.randn(4, 3, 1, 3), torch.randn(5, 4, 3, 1))
    with pytest.raises(RuntimeError, match="x: expected 3 channels"):
        pair(torch.randn(1, 2, 5, 5))
    with pytest.raises(RuntimeError, match="padded intermediate"):
        pair(torch.randn(1, 3, 2, 5))
    with pytest.raises(RuntimeError, match="weight_shape2: expected 4 input channels, got 3"):
        PreparedAsymmetricPair(torch.randn(4, 3, 1, 3), torch.randn(5, 3, 3, 1))(torch.randn(1, 3, 5, 5))
