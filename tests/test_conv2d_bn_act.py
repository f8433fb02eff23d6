"""conv2d_bn_act against float64, forward and backward, on every backend that runs on the host."""

import pytest
import torch
from operator_cases import DTYPES, LAYOUTS, check, conv_case, evaluate, evaluate_on, in_layout, run
from oracle import ACTIVATIONS, assert_as_accurate_as_torch, conv2d_bn_act, rms

pytestmark = pytest.mark.usefixtures("poisoned_memory")

BACKENDS = ("reference", "cpu")
MODES = {"eval": False, "train": True}

# Windows, strides, paddings, dilations and sizes; the other options rotate over the rows so that all meet.
GEOMETRIES = {
    "1x1": dict(N=3, C=17, H=7, W=5, K=33, window=(1, 1)),
    "1x1_stride2": dict(N=2, C=6, H=7, W=9, K=10, stride=2, window=(1, 1)),
    "1x1_wide_k": dict(N=1, C=70, H=5, W=5, K=133, window=(1, 1)),
    "1x7": dict(N=1, C=33, H=9, W=11, K=24, window=(1, 7), padding=(0, 3)),
    "7x1": dict(N=3, C=17, H=11, W=9, K=16, window=(7, 1), padding=(3, 0)),
    "1x3": dict(N=2, C=40, H=8, W=8, K=36, window=(1, 3), padding=(0, 1)),
    "3x1": dict(N=2, C=3, H=8, W=8, K=17, window=(3, 1), padding=(1, 0)),
    "3x3": dict(N=2, C=33, H=7, W=7, K=17, window=(3, 3), padding=1),
    "3x3_valid": dict(N=1, C=32, H=13, W=11, K=32, window=(3, 3)),
    "3x3_stride2": dict(N=3, C=3, H=13, W=11, K=32, window=(3, 3), stride=2),
    "3x3_stride2_larger": dict(N=3, C=33, H=14, W=15, K=40, window=(3, 3), stride=2, padding=1),
    "5x3_stride32_larger": dict(N=2, C=40, H=23, W=29, K=35, window=(5, 3), stride=(3, 2), padding=(1, 2)),
    "3x3_larger": dict(N=2, C=48, H=19, W=23, K=70, window=(3, 3), padding=1),
    "3x3_stride21": dict(N=2, C=7, H=9, W=13, K=9, window=(3, 3), stride=(2, 1), padding=1),
    "3x3_stride13": dict(N=2, C=16, H=9, W=14, K=16, window=(3, 3), stride=(1, 3), padding=(1, 0)),
    "5x5": dict(N=2, C=9, H=9, W=8, K=12, window=(5, 5), padding=2),
    "2x2_even": dict(N=2, C=5, H=8, W=7, K=9, window=(2, 2)),
    "4x2_even": dict(N=1, C=8, H=9, W=6, K=20, window=(4, 2), padding=(2, 1), stride=(1, 2)),
    "dilated": dict(N=2, C=10, H=11, W=13, K=6, window=(3, 3), padding=2, dilation=2),
    "dilated23_stride2": dict(N=2, C=10, H=12, W=13, K=18, window=(3, 3), padding=(1, 3), dilation=(2, 3), stride=2),
    "padding_one_axis": dict(N=2, C=4, H=5, W=6, K=5, window=(3, 3), padding=(2, 0)),
    "padding_beyond_window": dict(N=2, C=6, H=4, W=5, K=8, window=(3, 3), padding=4),
    "window_over_image": dict(N=2, C=5, H=2, W=3, K=7, window=(5, 7), padding=(2, 3)),
    "stride_over_window": dict(N=2, C=5, H=11, W=13, K=7, window=(2, 1), stride=(4, 3)),
    "one_pixel": dict(N=5, C=19, H=1, W=1, K=21, window=(1, 1)),
    "c1": dict(N=2, C=1, H=7, W=6, K=8, window=(3, 3), padding=1),
    "k1": dict(N=2, C=8, H=7, W=6, K=1, window=(3, 3), padding=1),
    "c1_k1": dict(N=2, C=1, H=5, W=6, K=1, window=(2, 3), padding=1),
    "prime_sizes": dict(N=1, C=13, H=19, W=37, K=29, window=(3, 3), padding=1),
    "deep_sum": dict(N=1, C=257, H=4, W=5, K=40, window=(3, 3), padding=1),
}


def rotated(index: int) -> dict:
    """Epilogue options that go with the index-th geometry."""
    return dict(
        activation=ACTIVATIONS[(index + 1) % 5],
        bias=index % 2 == 0,
        residual=index % 3 == 0,
        eps=(1e-5, 1e-3)[index % 2],
        momentum=(0.1, 0.3)[index % 2],
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_core_geometry(name, dtype, mode, backend):
    index = list(GEOMETRIES).index(name)
    case = conv_case(**GEOMETRIES[name], **rotated(index), dtype=DTYPES[dtype], training=MODES[mode], seed=index)
    if index % 4:
        case = case.but(x=in_layout(case.tensors["x"], "channels_last"))
    check(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("bn", [False, True], ids=["no_bn", "bn"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(activation, bn, residual, mode, backend):
    case = conv_case(
        N=2, C=9, H=6, W=7, K=19, window=(1, 3), padding=(0, 1), bn=bn, bias=True, residual=residual,
        activation=activation, training=MODES[mode], seed=3,
    )  # fmt: skip
    if bn:  # far enough out to pass relu6's upper kink
        case = case.but(bn_weight=case.tensors["bn_weight"] * 4)
    check(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("missing", ["bn_weight", "bn_bias", "both"])
def test_batch_norm_without_affine(missing, mode, backend):
    case = conv_case(C=6, K=18, training=MODES[mode], activation="silu")
    gone = ("bn_weight", "bn_bias") if missing == "both" else (missing,)
    check(case.but(**dict.fromkeys(gone)), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_float32_batch_norm_with_low_precision_input(dtype, mode, backend):
    case = conv_case(
        N=3, C=33, H=8, W=9, K=35, window=(3, 3), padding=1, dtype=DTYPES[dtype], bn_dtype=torch.float32,
        training=MODES[mode], activation="elu",
    )  # fmt: skip
    check(case, backend)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("residual_layout", ["contiguous", "channel_slice", "expanded_batch"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, residual_layout, mode):
    case = conv_case(
        N=3, C=8, H=7, W=6, K=18, window=(3, 3), padding=1, residual=True, training=MODES[mode], activation="silu"
    )
    case = case.but(
        x=in_layout(case.tensors["x"], layout), residual=in_layout(case.tensors["residual"], residual_layout)
    )
    # one value everywhere in x and in the gradient would round all terms of a sum the same way
    grad_layout = "expanded_batch" if layout == "expanded_everywhere" else layout
    check(case, "cpu", grad_layout=grad_layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channel_slice", "spatial_slice"])
@pytest.mark.parametrize("C", [1, 3, 17, 33, 64])
def test_layouts_and_channel_counts(C, layout, dtype):
    case = conv_case(N=2, C=C, H=5, W=6, K=C, window=(1, 3), padding=(0, 1), dtype=DTYPES[dtype], activation="none")
    check(case.but(x=in_layout(case.tensors["x"], layout)), "cpu", grad_layout=layout)


@pytest.mark.parametrize("mode", MODES)
def test_weight_and_vectors_with_any_strides(mode):
    case = conv_case(C=6, K=10, window=(3, 2), bias=True, training=MODES[mode])
    strided = {
        name: torch.stack([t, torch.full_like(t, float("nan"))], dim=-1)[..., 0]
        for name, t in case.tensors.items()
        if t.dim() == 1
    }
    check(case.but(weight=in_layout(case.tensors["weight"], "channel_slice"), **strided), "cpu")


@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("bn_weight",), ("bn_bias", "bias"), ("residual",)])
@pytest.mark.parametrize("mode", MODES)
def test_only_the_wanted_gradients(mode, wanted):
    """Each subset of gradients has the very bits it has when all are asked for."""
    from inception_kernels import backends, conv2d_bn_act

    case = conv_case(C=6, K=18, bias=True, residual=True, training=MODES[mode], activation="relu")
    grad_y = torch.randn(2, 18, 5, 7, generator=torch.Generator().manual_seed(1))
    everything = evaluate_on("cpu", case, grad_y).grads
    leaves = {n: t.clone().requires_grad_(n in wanted) for n, t in case.tensors.items()}
    with backends.use_backend("cpu"):
        y = conv2d_bn_act(**leaves, **case.options)
    grads = torch.autograd.grad(y, [leaves[n] for n in wanted], grad_y)
    for name, grad in zip(wanted, grads, strict=True):
        assert torch.equal(grad, everything[name]), name


@pytest.mark.parametrize("variance_of", [1e-12, 1e8])
def test_running_variance_of_any_size(variance_of):
    case = conv_case(K=18, activation="none", eps=1e-3)
    check(case.but(running_var=case.tensors["running_var"] * variance_of), "cpu")


def test_batch_statistics_far_from_zero():
    """A mean 1000 times the deviation: a one-pass variance would lose every digit in float32."""
    case = conv_case(N=4, C=4, H=9, W=9, K=18, window=(1, 1), bias=True, training=True, activation="none")
    check(case.but(bias=case.tensors["bias"] + 1000), "cpu", backward=False)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("C", "K", "window"), [(448, 64, (3, 3)), (448, 384, (3, 3)), (2048, 64, (1, 1)), (192, 192, (1, 7))], ids=str
)
def test_deep_sums_of_inception_layers(C, K, window, layout):
    """PyTorch adds in blocks where the input is contiguous: long sums must be as good in either format."""
    case = conv_case(
        N=1, C=C, H=8, W=8, K=K, window=window, padding=(window[0] // 2, window[1] // 2), bn=False, activation="none"
    )
    case = case.but(x=in_layout(case.tensors["x"], layout))
    exact = conv2d_bn_act(**case.cast(torch.float64).tensors, **case.options)
    torchs = conv2d_bn_act(**case.tensors, **case.options)
    assert_as_accurate_as_torch(run(case, "cpu"), exact, [torchs], name="y")


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize(
    ("C", "K", "size", "options"),
    [
        (192, 192, 17, dict(window=(1, 7), padding=(0, 3))),
        (768, 192, 17, dict(window=(1, 1))),
        (48, 64, 35, dict(window=(5, 5), padding=2)),
        (3, 32, 149, dict(window=(3, 3), stride=2)),
        (64, 96, 35, dict(window=(3, 3), padding=1)),
        (256, 256, 16, dict(window=(3, 3), padding=1)),
    ],
    ids=str,
)
def test_weight_gradients_are_summed_in_short_chains(C, K, size, options, isa, use_isa):
    """One chain over all pixels would leave three to ten times the last digit here, PyTorch leaves one to seven."""
    use_isa(isa)
    case = conv_case(N=1, C=C, H=size, W=size, K=K, bn=False, activation="none", **options)
    case = case.but(x=in_layout(case.tensors["x"], "channels_last"))
    grad_y = torch.randn(run(case, "cpu").shape, generator=torch.Generator().manual_seed(5))
    exact = evaluate(conv2d_bn_act, case.cast(torch.float64), grad_y.double()).grads["weight"]
    error = evaluate_on("cpu", case, grad_y).grads["weight"] - exact
    assert rms(error) < 2 * torch.finfo(torch.float32).eps * rms(exact)
