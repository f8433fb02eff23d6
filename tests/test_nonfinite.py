"""A NaN or an infinity reaches exactly the values that depend on it: padding, tails and packing must not spread it."""

import pytest
import torch
from instruction_sets import ISA_FLAGS
from operator_cases import DTYPES, MAKERS, call, evaluate, evaluate_on, in_layout, run
from oracle import ACTIVATIONS, COMPOSITIONS, assert_as_accurate_as_torch

from inception_kernels import backends

pytestmark = pytest.mark.usefixtures("poisoned_memory")

CASES = {
    "conv2d_bn_act": dict(N=2, C=19, H=9, W=10, K=21, window=(3, 3), padding=1),
    "conv2d_bn_act_1x7": dict(N=2, C=35, H=9, W=10, K=35, window=(1, 7), padding=(0, 3)),
    "conv2d_bn_act_1x1": dict(N=2, C=17, H=9, W=10, K=37, window=(1, 1)),
    "conv2d_bn_act_stride2": dict(N=2, C=19, H=9, W=10, K=21, window=(3, 3), stride=2, padding=1),
    "separable_conv2d": dict(N=2, C=19, H=9, W=10, K=21, padding=1),
    "separable_conv2d_stride2": dict(N=2, C=40, H=9, W=10, K=21, window=(5, 5), stride=2, padding=2),
    "asymmetric_pair": dict(N=2, C=19, H=9, W=10, M=18, K=21),
}


def make(name: str, **more):
    operator = next(op for op in MAKERS if name.startswith(op))
    return MAKERS[operator](**CASES[name], **more)


def evaluation_of(case):
    return call(COMPOSITIONS[case.operator], case)


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (0, 3, 4, 5), (1, -1, -1, -1)], ids=["first", "middle", "last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_core_one_nan_pixel(name, dtype, place):
    case = make(name, dtype=DTYPES[dtype])
    clean = run(case, "cpu")
    x = case.tensors["x"].clone()
    x[place] = float("nan")
    backends.reset_counters()
    dirty = run(case.but(x=x), "cpu")
    large_blocks = dtype in ("bf16", "f16") and any(name.endswith("_winograd") for name in backends.counters())
    exact = evaluation_of(case.but(x=x).cast(torch.float64))
    expected = exact.isnan()
    assert expected.any() and not expected.all()
    assert torch.equal(dirty.isnan(), expected), "NaN is not where float64 has it"
    if large_blocks:  # what shares a block with the pixel but does not depend on it is computed by the definition
        torchs = [evaluation_of(case)[~expected]]
        assert_as_accurate_as_torch(
            dirty[~expected], exact[~expected], torchs, name="what does not depend on the pixel"
        )
    else:
        assert torch.equal(dirty[~expected], clean[~expected]), "a value that does not depend on the pixel changed"


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
@pytest.mark.parametrize("name", CASES)
def test_one_infinite_pixel(name, value):
    case = make(name)
    clean = run(case, "cpu")
    x = case.tensors["x"].clone()
    x[0, 3, 4, 5] = value
    dirty = run(case.but(x=x), "cpu")
    exact = evaluation_of(case.but(x=x).cast(torch.float64))
    touched = evaluation_of(case.but(x=x.masked_fill(x.isinf(), float("nan"))).cast(torch.float64)).isnan()
    assert torch.equal(dirty[~touched], clean[~touched])
    assert torch.equal(dirty.isnan(), exact.isnan())
    assert torch.equal(dirty.isposinf(), exact.isposinf())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", MAKERS)
def test_activations_of_nan_infinities_and_large_values(operator, dtype, activation):
    """The last activation, fed through the BN bias with values of every kind, gives what PyTorch's gives."""
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-30, 100.0, -100.0, 3e4, -3e4, 6.0])
    case = MAKERS[operator](N=1, C=3, H=3, W=3, K=len(values), dtype=DTYPES[dtype], activation=activation)
    last = "2" if operator == "asymmetric_pair" else ""
    zero = torch.zeros(len(values), dtype=DTYPES[dtype])
    case = case.but(**{f"bn_weight{last}": zero, f"bn_bias{last}": values.to(DTYPES[dtype])})
    y = run(case, "cpu")
    expected = evaluation_of(case)
    # PyTorch's own silu and elu round twice in half precision; values below the smallest normal number may be zero.
    limits = torch.finfo(y.dtype)
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=2 * limits.eps, atol=limits.tiny)


@pytest.mark.parametrize("isa", ISA_FLAGS)
@pytest.mark.parametrize("activation", ["elu", "silu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_near_the_ends_of_the_exponential(dtype, activation, isa, use_isa):
    use_isa(isa)
    values = torch.cat([torch.linspace(-110, 110, 2201), torch.linspace(-90, -86, 4001)])
    sizes = dict(N=1, C=3, H=1, W=1, K=len(values), window=(1, 1))
    case = MAKERS["conv2d_bn_act"](**sizes, dtype=DTYPES[dtype], activation=activation)
    zero = torch.zeros(len(values), dtype=DTYPES[dtype])
    case = case.but(bn_weight=zero, bn_bias=values.to(DTYPES[dtype]))
    y = run(case, "cpu")
    limits = torch.finfo(y.dtype)
    torch.testing.assert_close(y, evaluation_of(case), rtol=2 * limits.eps, atol=limits.tiny)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_one_nan_in_the_gradient(name, dtype):
    """In evaluation an output's gradient reaches only the input pixels of its window."""
    case = make(name, dtype=DTYPES[dtype], activation="none")
    y = run(case, "cpu")
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y.dtype)
    clean = evaluate_on("cpu", case, grad_y).grads["x"]
    torchs = evaluate(COMPOSITIONS[case.operator], case, grad_y).grads["x"]
    grad_y[1, 2, 1, 2] = float("nan")
    backends.reset_counters()
    dirty = evaluate_on("cpu", case, grad_y).grads["x"]
    large_blocks = dtype == "bf16" and any(name.endswith("_winograd_data") for name in backends.counters())
    exact = evaluate(COMPOSITIONS[case.operator], case.cast(torch.float64), grad_y.double()).grads["x"]
    expected = exact.isnan()
    assert expected.any() and not expected.all()
    assert torch.equal(dirty.isnan(), expected)
    if large_blocks:  # as in the result: pixels that share a block with it are computed by the definition
        assert_as_accurate_as_torch(dirty[~expected], exact[~expected], [torchs[~expected]], name="other pixels")
    else:
        assert torch.equal(dirty[~expected], clean[~expected])


@pytest.mark.parametrize("operator", MAKERS)
def test_nan_beside_the_view_is_never_read(operator):
    """The layouts of slices put NaN around the view: the results are the ones of a tensor of its own."""
    case = MAKERS[operator](N=2, C=19, H=8, W=9, K=18)
    expected = run(case, "cpu")
    for layout in ("channel_slice", "channel_slice_of_contiguous", "spatial_slice", "every_other_image"):
        assert torch.equal(run(case.but(x=in_layout(case.tensors["x"], layout)), "cpu"), expected), layout


def test_float16_overflows_only_at_the_end():
    """float16 ends at 65504: partial sums may pass it, because they are kept in float32."""
    case = MAKERS["conv2d_bn_act"](N=1, C=16, H=5, W=5, K=18, dtype=torch.float16, activation="none", bn=False, seed=4)
    x = torch.where(case.tensors["x"] > 0, 16384.0, -16384.0).half()
    case = case.but(x=x, weight=(case.tensors["weight"].sign() * 0.6).half())
    y, exact = run(case, "cpu"), evaluation_of(case.cast(torch.float64))
    finite = exact.abs() < 65000
    assert finite.any() and not finite.all()
    assert torch.isfinite(y[finite]).all()
    assert (y[exact > 66000] == float("inf")).all() and (y[exact < -66000] == -float("inf")).all()
