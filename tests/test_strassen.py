"""The separable convolutions of many channels whose products the CPU computes by Strassen's algorithm."""

import math

import pytest
import torch
import torch.nn.functional as F
from operator_cases import DTYPES, Case, evaluate_on, in_layout, run, separable_case
from oracle import ACTIVATIONS, assert_as_accurate_as_torch, geometric_mean, rms, separable_conv2d

from inception_kernels import backends
from inception_kernels.ops.prepared import PreparedSeparableConv2d

pytestmark = pytest.mark.usefixtures("poisoned_memory")
SEPARABLE = dict(padding=1, bn=False, activation="none")


@pytest.fixture(autouse=True)
def avx512(use_isa):
    """Smaller register blocks, and products of bf16, do without the algorithm."""
    use_isa("avx512")


def used_by(call) -> bool:
    backends.reset_counters()
    call()
    (name,) = [name for name in backends.counters() if name.startswith("separable_conv2d.forward")]
    return name.endswith("_strassen")


def exact_and_torchs(case: Case) -> tuple[torch.Tensor, list[torch.Tensor]]:
    exact = separable_conv2d(**case.cast(torch.float64).tensors, **case.options)
    layouts = [case.but(x=in_layout(case.tensors["x"], layout)) for layout in ("contiguous", "channels_last")]
    return exact, [separable_conv2d(**each.tensors, **each.options) for each in layouts]


@pytest.mark.parametrize(
    ("change", "used"),
    [
        (dict(), True),
        (dict(dtype=torch.bfloat16), True),
        (dict(dtype=torch.float16), True),
        (dict(window=(5, 3), stride=2, dilation=(1, 2)), True),
        (dict(dtype=torch.float64), False),
        (dict(C=638), False),
        (dict(C=641), False),
        (dict(K=127), False),
    ],
    ids=str,
)
def test_which_convolutions(change, used):
    case = separable_case(**dict(N=1, C=640, H=5, W=6, K=128, **SEPARABLE) | change)
    assert used_by(lambda: run(case, "cpu")) == used


def test_a_training_step_writes_weights_for_one_use():
    case = separable_case(N=1, C=640, H=5, W=6, K=128, padding=1, training=True)
    assert not used_by(lambda: evaluate_on("cpu", case))


@pytest.mark.parametrize(
    ("isa", "dtype"), [("portable", "f32"), ("avx2", "f32"), ("avx512bf16", "bf16"), ("amx", "bf16")]
)
def test_other_instruction_sets_do_without(isa, dtype, use_isa):
    use_isa(isa)
    case = separable_case(N=1, C=640, H=5, W=6, K=128, dtype=DTYPES[dtype], **SEPARABLE)
    assert not used_by(lambda: run(case, "cpu"))


# Units of one pixel and of all lengths, an odd one out, one panel of columns alone, whole or narrow, several tiles.
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(
    ("N", "C", "H", "W", "K"),
    [
        (2, 640, 1, 1, 128),
        (3, 640, 1, 2, 129),
        (1, 662, 3, 1, 160),
        (2, 640, 3, 9, 144),
        (1, 642, 4, 7, 176),
        (2, 728, 5, 11, 192),
        (1, 770, 2, 29, 145),
        (1, 690, 13, 17, 321),
        (2, 1536, 10, 10, 130),
    ],
)
def test_sizes(N, C, H, W, K, dtype):
    case = separable_case(N=N, C=C, H=H, W=W, K=K, dtype=DTYPES[dtype], seed=H * W + K, **SEPARABLE)
    assert_as_accurate_as_torch(run(case, "cpu"), *exact_and_torchs(case), name="y")


@pytest.mark.parametrize("index", range(len(ACTIVATIONS)))
def test_epilogues(index):
    case = separable_case(
        N=2, C=646, H=7, W=8, K=171, padding=1, bias=index % 2 == 0, depthwise_bias=index % 2 == 1,
        residual=index % 3 != 1, activation=ACTIVATIONS[index], mid_activation=ACTIVATIONS[index - 1], seed=index,
    )  # fmt: skip
    assert used_by(lambda: run(case, "cpu"))
    assert_as_accurate_as_torch(run(case, "cpu"), *exact_and_torchs(case), name="y")


def test_slices_of_larger_tensors():
    case = separable_case(N=2, C=650, H=6, W=7, K=150, residual=True, **SEPARABLE)
    expected = run(case, "cpu")
    for layout in ("channel_slice", "spatial_slice", "transposed"):
        sliced = {name: in_layout(case.tensors[name], layout) for name in ("x", "residual")}
        assert torch.equal(run(case.but(**sliced), "cpu"), expected), layout


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_prepared_weights(dtype):
    case = separable_case(N=2, C=640, H=9, W=5, K=200, padding=1, bn=False, dtype=DTYPES[dtype])
    x, depthwise, pointwise = (case.tensors[name] for name in ("x", "depthwise_weight", "pointwise_weight"))
    prepared = PreparedSeparableConv2d(depthwise, pointwise, padding=1, activation="none")
    assert used_by(lambda: prepared(x))
    assert torch.equal(prepared(x), run(case.but(), "cpu", activation="none"))


def test_sums_of_small_integers_are_exact():
    case = separable_case(N=2, C=728, H=6, W=7, K=200, **SEPARABLE)
    g = torch.Generator().manual_seed(3)
    whole = {name: torch.randint(-2, 3, t.shape, generator=g).float() for name, t in case.tensors.items()}
    exact = separable_conv2d(**case.but(**whole).cast(torch.float64).tensors, **case.options)
    assert torch.equal(run(case.but(**whole), "cpu").double(), exact)


@pytest.mark.parametrize(("C", "K", "size"), [(640, 128, 10), (728, 728, 19), (1024, 1536, 10), (1536, 2048, 10)])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_the_typical_error(C, K, size, activation):
    """Over some draws, in the root mean square: at most that of PyTorch's less accurate memory format."""
    ratios: dict[str, list[torch.Tensor]] = {"contiguous": [], "channels_last": []}
    for seed in range(3):
        case = separable_case(N=1, C=C, H=size, W=size, K=K, seed=seed, mid_activation=activation, **SEPARABLE)
        exact, torchs = exact_and_torchs(case)
        ours = rms(run(case, "cpu") - exact)
        for found, theirs in zip(ratios.values(), torchs, strict=True):
            found.append(ours / rms(theirs - exact))
    assert min(map(geometric_mean, ratios.values())) < 1


def test_a_large_pixel_disturbs_its_neighbours_only():
    """An error is relative to the larger of two pixels that are paired: further away it is as small as ever."""
    case = separable_case(N=1, C=640, H=9, W=20, K=128, **SEPARABLE)
    x = case.tensors["x"].clone()
    x[:, :, 4, 10] *= 1e6
    case = case.but(x=x)
    exact, torchs = exact_and_torchs(case)
    near = torch.zeros(9, 20, dtype=torch.bool)
    near[3:6, 8:13] = True
    y = run(case, "cpu")
    for place in (near, ~near):
        assert_as_accurate_as_torch(y[..., place], exact[..., place], [t[..., place] for t in torchs], name="y")


@pytest.mark.parametrize("K", [128, 130, 180])
def test_infinities_and_nan_have_the_effect_of_the_definition(K):
    case = separable_case(N=2, C=646, H=11, W=12, K=K, **SEPARABLE)
    x = case.tensors["x"].clone()
    places = torch.randperm(11 * 12, generator=torch.Generator().manual_seed(0))[:6]
    for i, value in enumerate([math.inf, -math.inf, math.nan, math.inf, -math.inf, math.inf]):
        x[i % 2, 100 * i, places[i] // 12, places[i] % 12] = value  # in both halves of the channels
    case = case.but(x=x)
    y = run(case, "cpu")
    exact, torchs = exact_and_torchs(case)
    touched = F.max_pool2d((~x.isfinite()).any(1, True).float(), 3, 1, 1).bool().expand_as(y)
    assert touched.any() and not touched.all()
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(y), kind(exact)), kind.__name__
    assert_as_accurate_as_torch(y[~touched], exact[~touched], [t[~touched] for t in torchs], name="y")


def test_sums_that_overflow_are_computed_by_the_definition():
    """A sum of two inputs may leave float32's range where no output does."""
    case = separable_case(N=1, C=640, H=6, W=7, K=128, window=(1, 1), bn=False, activation="none")
    x = torch.full_like(case.tensors["x"], 3e38)
    one = torch.ones_like(case.tensors["depthwise_weight"])
    weight = torch.zeros_like(case.tensors["pointwise_weight"])
    weight[torch.arange(128), 5 * torch.arange(128)] = 1
    y = run(case.but(x=x, depthwise_weight=one, pointwise_weight=weight), "cpu")
    assert torch.equal(y, torch.full_like(y, 3e38))
