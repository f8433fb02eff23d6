"""The operators on the Triton kernels, forward and backward, against float64: the cases of the host's own tests."""

import pytest
import test_asymmetric_pair as pair
import test_conv2d_bn_act as conv
import test_separable_conv2d as separable
import torch
from operator_cases import LAYOUTS, Case, check, conv_case, evaluate_on, in_layout, pair_case, run, separable_case
from oracle import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
MODES = {"eval": False, "train": True}
SUITES = {
    "conv2d_bn_act": (conv_case, conv),
    "separable_conv2d": (separable_case, separable),
    "asymmetric_pair": (pair_case, pair),
}
# Every geometry in float32 and bfloat16, in evaluation or training by turns, and every third in float16.
CORE = [
    (operator, name, dtype, "train" if (i + (dtype == "bf16")) % 2 else "eval")
    for operator, (_, suite) in SUITES.items()
    for i, name in enumerate(suite.GEOMETRIES)
    for dtype in ("f32", "bf16", "f16")
    if dtype != "f16" or i % 3 == 0
]


@pytest.mark.parametrize(("operator", "name", "dtype", "mode"), CORE, ids=["-".join(case) for case in CORE])
def test_core_geometry(operator: str, name: str, dtype: str, mode: str) -> None:
    make, suite = SUITES[operator]
    index = list(suite.GEOMETRIES).index(name)
    options = {**suite.GEOMETRIES[name], **suite.rotated(index)}
    case = make(**options, dtype=DTYPES[dtype], training=MODES[mode], seed=index)
    if index % 4:
        case = case.but(x=in_layout(case.tensors["x"], "channels_last"))
    check(case, "triton")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bn", [False, True], ids=["no_bn", "bn"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(activation: str, bn: bool, mode: str) -> None:
    case = conv_case(
        N=2, C=9, H=6, W=7, K=19, window=(1, 3), padding=(0, 1), bn=bn, bias=True, residual=True,
        activation=activation, training=MODES[mode], seed=3,
    )  # fmt: skip
    if bn:  # far enough out to pass relu6's upper kink
        case = case.but(bn_weight=case.tensors["bn_weight"] * 4)
    check(case, "triton")


@pytest.mark.parametrize("where", ["input_activation", "mid_activation", "activation"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_in_each_place(activation: str, where: str) -> None:
    case = separable_case(N=2, C=20, H=6, W=7, K=19, padding=1, depthwise_bias=True, seed=5, **{where: activation})
    case = case.but(x=case.tensors["x"] * 3, bn_weight=case.tensors["bn_weight"] * 4)
    check(case, "triton")


@pytest.mark.parametrize("K", [19, 150], ids=["fused", "two_kernels"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, K: int) -> None:
    case = separable_case(N=3, C=8, H=7, W=6, K=K, padding=1, residual=True, training=True, activation="silu")
    residual = in_layout(case.tensors["residual"], "channel_slice")
    case = case.but(x=in_layout(case.tensors["x"], layout), residual=residual)
    check(case, "triton", grad_layout="expanded_batch" if layout == "expanded_everywhere" else layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_a_dense_convolution(layout: str) -> None:
    case = conv_case(N=3, C=8, H=7, W=6, K=18, window=(3, 3), padding=1, residual=True, training=True)
    residual = in_layout(case.tensors["residual"], "expanded_batch")
    case = case.but(x=in_layout(case.tensors["x"], layout), residual=residual)
    check(case, "triton", grad_layout="expanded_batch" if layout == "expanded_everywhere" else layout)


@pytest.mark.parametrize("make", [conv_case, separable_case], ids=["conv2d_bn_act", "separable_conv2d"])
def test_vectors_with_any_strides(make) -> None:
    case: Case = make(C=6, K=10, bias=True, training=True)
    strided = {
        name: torch.stack([t, torch.full_like(t, float("nan"))], dim=-1)[..., 0]
        for name, t in case.tensors.items()
        if t.dim() == 1
    }
    check(case.but(**strided), "triton")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [conv_case, separable_case, pair_case])
def test_empty_batch_has_a_result_and_gradients(make, mode: str) -> None:
    case = make(N=0, bias=True, training=MODES[mode])
    outcome = evaluate_on("triton", case, torch.empty(0, 6, *output_of(case)))
    assert outcome.y.shape[:2] == (0, 6)
    for name, gradient in outcome.grads.items():
        assert gradient.shape == case.tensors[name].shape
        assert not gradient.any()
    for name, value in outcome.statistics.items():
        assert torch.equal(value, case.tensors[name])


def output_of(case: Case) -> torch.Size:
    return run(case, "triton").shape[2:]


@pytest.mark.parametrize("K", [19, 150])
def test_more_pixels_than_a_tile_and_more_slices_than_one(K: int) -> None:
    check(separable_case(N=2, C=24, H=13, W=17, K=K, padding=1, training=True, dtype=torch.bfloat16), "triton")


def test_deep_sum_over_several_tiles() -> None:
    check(conv_case(N=1, C=150, H=9, W=17, K=150, window=(1, 7), padding=(0, 3), dtype=torch.bfloat16), "triton")
