"""separable_conv2d against float64, forward and backward, on every backend that runs on the host."""

import pytest
import torch
from operator_cases import DTYPES, LAYOUTS, check, evaluate_on, in_layout, separable_case
from oracle import ACTIVATIONS, geometric_mean

from inception_kernels import reference, separable_conv2d

pytestmark = pytest.mark.usefixtures("poisoned_memory")

BACKENDS = ("reference", "cpu")
MODES = {"eval": False, "train": True}

GEOMETRIES = {
    "3x3": dict(N=2, C=17, H=9, W=7, K=33, window=(3, 3), padding=1),
    "3x3_wide": dict(N=1, C=72, H=7, W=19, K=70, window=(3, 3), padding=1),
    "3x3_valid": dict(N=3, C=32, H=8, W=9, K=16, window=(3, 3)),
    "3x3_stride2": dict(N=2, C=33, H=13, W=11, K=24, window=(3, 3), stride=2, padding=1),
    "3x3_stride2_larger": dict(N=3, C=40, H=27, W=29, K=35, window=(3, 3), stride=2, padding=1),
    "3x3_larger": dict(N=2, C=70, H=19, W=19, K=67, window=(3, 3), padding=1),
    "3x3_stride21": dict(N=2, C=7, H=9, W=13, K=9, window=(3, 3), stride=(2, 1), padding=1),
    "5x5": dict(N=2, C=9, H=9, W=8, K=12, window=(5, 5), padding=2),
    "7x7_stride2": dict(N=1, C=16, H=15, W=14, K=20, window=(7, 7), stride=2, padding=3),
    "1x1": dict(N=3, C=17, H=5, W=7, K=19, window=(1, 1)),
    "1x5": dict(N=2, C=12, H=6, W=9, K=18, window=(1, 5), padding=(0, 2)),
    "5x1": dict(N=2, C=12, H=9, W=6, K=18, window=(5, 1), padding=(2, 0)),
    "2x4_even": dict(N=2, C=10, H=8, W=9, K=17, window=(2, 4), padding=(1, 2), stride=(1, 2)),
    "dilated": dict(N=2, C=10, H=11, W=13, K=6, window=(3, 3), padding=2, dilation=2),
    "dilated23_stride2": dict(N=2, C=20, H=12, W=13, K=18, window=(3, 3), padding=(1, 3), dilation=(2, 3), stride=2),
    "padding_one_axis": dict(N=2, C=4, H=5, W=6, K=5, window=(3, 3), padding=(2, 0)),
    "padding_beyond_window": dict(N=2, C=6, H=4, W=5, K=8, window=(3, 3), padding=4),
    "window_over_image": dict(N=2, C=5, H=2, W=3, K=7, window=(5, 7), padding=(2, 3)),
    "stride_over_window": dict(N=2, C=5, H=11, W=13, K=7, window=(2, 1), stride=(4, 3)),
    "one_pixel": dict(N=5, C=19, H=1, W=1, K=21, window=(3, 3), padding=1),
    "c1": dict(N=2, C=1, H=7, W=6, K=8, window=(3, 3), padding=1),
    "k1": dict(N=2, C=8, H=7, W=6, K=1, window=(3, 3), padding=1),
    "c1_k1": dict(N=2, C=1, H=5, W=6, K=1, window=(2, 3), padding=1),
    "prime_sizes": dict(N=1, C=13, H=19, W=37, K=29, window=(3, 3), padding=1),
    "deep_sum": dict(N=1, C=523, H=4, W=5, K=40, window=(3, 3), padding=1),
}


def rotated(index: int) -> dict:
    """Activations, biases and residual that go with the index-th geometry."""
    return dict(
        input_activation=ACTIVATIONS[index % 5],
        mid_activation=ACTIVATIONS[(index // 2) % 5],
        activation=ACTIVATIONS[(index + 3) % 5],
        bias=index % 2 == 0,
        depthwise_bias=index % 3 == 0,
        residual=index % 3 == 1,
        eps=(1e-5, 1e-3)[index % 2],
        momentum=(0.1, 0.3)[index % 2],
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_core_geometry(name, dtype, mode, backend):
    index = list(GEOMETRIES).index(name)
    case = separable_case(**GEOMETRIES[name], **rotated(index), dtype=DTYPES[dtype], training=MODES[mode], seed=index)
    if index % 4:
        case = case.but(x=in_layout(case.tensors["x"], "channels_last"))
    check(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", ["input_activation", "mid_activation", "activation"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_in_each_place(activation, where, mode, backend):
    case = separable_case(
        N=2, C=20, H=6, W=7, K=19, padding=1, depthwise_bias=True, training=MODES[mode], seed=5, **{where: activation}
    )
    # far enough out to pass relu6's upper kink
    case = case.but(x=case.tensors["x"] * 3, bn_weight=case.tensors["bn_weight"] * 4)
    check(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("bn", [False, True], ids=["no_bn", "bn"])
def test_without_batch_norm(bn, residual, mode, backend):
    case = separable_case(
        N=2, C=9, K=19, padding=1, bn=bn, bias=True, depthwise_bias=True, residual=residual, input_activation="relu",
        activation="silu", training=MODES[mode],
    )  # fmt: skip
    check(case, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_float32_batch_norm_with_low_precision_input(dtype, mode, backend):
    case = separable_case(
        N=3, C=33, H=8, W=9, K=35, padding=1, dtype=DTYPES[dtype], bn_dtype=torch.float32, training=MODES[mode],
        input_activation="relu",
    )  # fmt: skip
    check(case, backend)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("residual_layout", ["contiguous", "channel_slice", "expanded_batch"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, residual_layout, mode):
    case = separable_case(
        N=3, C=20, H=7, W=6, K=18, padding=1, residual=True, training=MODES[mode], input_activation="relu"
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
    case = separable_case(N=2, C=C, H=5, W=6, K=C, padding=1, dtype=DTYPES[dtype], input_activation="relu")
    check(case.but(x=in_layout(case.tensors["x"], layout)), "cpu", grad_layout=layout)


@pytest.mark.parametrize("mode", MODES)
def test_weights_and_vectors_with_any_strides(mode):
    case = separable_case(C=6, K=10, bias=True, depthwise_bias=True, training=MODES[mode])
    strided = {
        name: torch.stack([t, torch.full_like(t, float("nan"))], dim=-1)[..., 0]
        for name, t in case.tensors.items()
        if t.dim() == 1
    }
    weights = {n: in_layout(case.tensors[n], "channel_slice") for n in ("depthwise_weight", "pointwise_weight")}
    check(case.but(**strided, **weights), "cpu")


@pytest.mark.parametrize(
    "wanted", [("x",), ("depthwise_weight",), ("pointwise_weight",), ("depthwise_bias",), ("bias",), ("residual",)]
)
@pytest.mark.parametrize("mode", MODES)
def test_only_the_wanted_gradients(mode, wanted):
    """Each subset of gradients has the very bits it has when all are asked for."""
    from inception_kernels import backends, separable_conv2d

    case = separable_case(
        C=6, K=18, bias=True, depthwise_bias=True, residual=True, training=MODES[mode], input_activation="relu",
        mid_activation="silu", activation="elu",
    )  # fmt: skip
    grad_y = torch.randn(2, 18, 5, 7, generator=torch.Generator().manual_seed(1))
    everything = evaluate_on("cpu", case, grad_y).grads
    leaves = {n: t.clone().requires_grad_(n in wanted) for n, t in case.tensors.items()}
    with backends.use_backend("cpu"):
        y = separable_conv2d(**leaves, **case.options)
    grads = torch.autograd.grad(y, [leaves[n] for n in wanted], grad_y)
    for name, grad in zip(wanted, grads, strict=True):
        assert torch.equal(grad, everything[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_gradient_that_batch_norm_cancels_over_many_draws(dtype):
    """One channel in training: in one draw either implementation may be many times luckier, so the typical one counts."""
    ratios = []
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        x, d, w, grad = (
            torch.randn(*shape, generator=g).to(dtype)
            for shape in ((2, 1, 7, 6), (1, 1, 3, 3), (8, 1, 1, 1), (2, 8, 7, 6))
        )
        gamma, beta = torch.rand(8, generator=g) + 0.5, torch.randn(8, generator=g)

        def weight_gradient(function, values, vectors, x=x, d=d, w=w, grad=grad, gamma=gamma, beta=beta):
            leaf = w.to(values).requires_grad_()
            y = function(
                x.to(values), d.to(values), leaf, gamma.to(vectors), beta.to(vectors), padding=1, activation="elu",
                training=True,
            )  # fmt: skip
            return torch.autograd.grad(y, leaf, grad.to(values))[0].double()

        exact = weight_gradient(reference.separable_conv2d, torch.float64, torch.float64)
        torchs = weight_gradient(reference.separable_conv2d, dtype, torch.float32)
        ours = weight_gradient(separable_conv2d, dtype, torch.float32)
        ratios.append((ours - exact).norm() / (torchs - exact).norm())
    typical = geometric_mean(ratios)
    assert typical <= 2, f"typically {typical:.2f} times PyTorch's error"
