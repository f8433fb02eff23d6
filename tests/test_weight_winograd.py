"""The gradients of the weights of convolutions of stride 1 that the CPU computes by Winograd's algorithm."""

import math

import pytest
import torch
from instruction_sets import without_bf16_products, without_tiles
from operator_cases import DTYPES, Case, check, conv_case, evaluate, evaluate_on, in_layout
from oracle import conv2d_bn_act, geometric_mean, rms
from winograd_cases import CHANGES, CONV, NARROW, NARROW_CHANGES, PLAIN, WIDE, same_padding, with_threads

from inception_kernels import backends

pytestmark = pytest.mark.usefixtures("poisoned_memory")
EVERY = [*WIDE, *NARROW]


@pytest.fixture(autouse=True)
def no_tiles(use_isa):
    """Products of bf16 tiles are too fast for the algorithm to gain."""
    use_isa(without_tiles(backends.cpu_isa()))


def gradient_of_weight(case: Case, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """By our kernels, or in `dtype` by PyTorch's."""
    y = conv2d_bn_act(**case.tensors, **case.options)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype)
    if dtype is None:
        return evaluate_on("cpu", case, grad_y).grads["weight"]
    return evaluate(conv2d_bn_act, case.cast(dtype), grad_y.to(dtype)).grads["weight"]


def kernels_of(case: Case) -> list[str]:
    """Of the gradients of weights, and of x where it goes by the definition."""
    backends.reset_counters()
    gradient_of_weight(case)
    names = [name for name in backends.counters() if name.startswith("conv2d_bn_act.backward")]
    return [name for name in names if not name.endswith("_winograd_data")]


@pytest.mark.parametrize(
    ("change", "used"),
    [
        *CHANGES,
        (dict(H=15, W=17), False),  # 255 pixels
        (dict(N=2, H=8, W=17), True),  # 272
    ],
    ids=str,
)
def test_which_gradients(change, used):
    names = kernels_of(conv_case(**dict(N=1, C=16, H=40, W=42, K=16, **CONV) | change))
    assert any(name.endswith("_winograd") for name in names) == used, names


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize(
    ("change", "used"), [*NARROW_CHANGES, (dict(window=(7, 1), padding=(3, 0), H=15, W=17), False)], ids=str
)
def test_which_gradients_of_16_bits(change, used, dtype):
    names = kernels_of(conv_case(**dict(N=1, C=16, H=40, W=42, K=16, dtype=DTYPES[dtype], **PLAIN) | change))
    assert any(name.endswith("_winograd") for name in names) == used, names


@pytest.mark.parametrize(("dtype", "window"), EVERY, ids=str)
@pytest.mark.parametrize("padding", [0, 1, 2, (0, 3)], ids=str)
@pytest.mark.parametrize(
    ("N", "C", "H", "W", "K"),
    [
        (2, 16, 19, 23, 29),
        (1, 33, 37, 18, 16),
        (70, 17, 7, 7, 43),  # an image is one row of blocks or two
        (3, 40, 68, 70, 20),  # several chunks, and several partial sums
        (1, 32, 7, 200, 64),
    ],
)
def test_gradients(N, C, H, W, K, padding, dtype, window):
    check(
        conv_case(N=N, C=C, H=H, W=W, K=K, window=window, padding=padding, dtype=DTYPES[dtype], **PLAIN),
        "cpu",
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512bf16"])
@pytest.mark.parametrize(("dtype", "window"), EVERY, ids=str)
def test_gradients_of_every_instruction_set(dtype, window, isa, layout, use_isa):
    use_isa(isa)
    case = conv_case(
        N=2, C=37, H=33, W=35, K=45, window=window, padding=same_padding(window), dtype=DTYPES[dtype], **PLAIN
    )
    case = case.but(weight=in_layout(case.tensors["weight"], layout))
    backends.reset_counters()
    check(case, "cpu")
    assert backends.counters()[f"conv2d_bn_act.backward.cpu_{without_bf16_products(isa)}_{dtype}_winograd"] == 1


@pytest.mark.parametrize(("C", "K", "size"), [(16, 16, 40), (32, 64, 60), (64, 96, 35), (80, 192, 20), (256, 256, 16)])
def test_the_typical_error_of_gradients(C, K, size):
    """Over many draws, in the root mean square: at most that of PyTorch's less accurate memory format."""
    ratios: dict[str, list[torch.Tensor]] = {"contiguous": [], "channels_last": []}
    for seed in range(6):
        case = conv_case(N=1, C=C, H=size, W=size, K=K, seed=seed, **CONV)
        exact = gradient_of_weight(case, dtype=torch.float64)
        ours = rms(gradient_of_weight(case) - exact)
        for layout, found in ratios.items():
            torchs = gradient_of_weight(case.but(x=in_layout(case.tensors["x"], layout)), dtype=torch.float32)
            found.append(ours / rms(torchs - exact))
    assert min(map(geometric_mean, ratios.values())) < 1


@pytest.mark.parametrize(("dtype", "window"), NARROW, ids=str)
@pytest.mark.parametrize(("C", "K", "size"), [(16, 32, 60), (64, 96, 35), (192, 192, 17)])
def test_the_typical_error_of_16_bits_is_that_of_storing_the_result(C, K, size, dtype, window):
    options = dict(
        N=2, C=C, H=size, W=size, K=K, window=window, padding=same_padding(window), dtype=DTYPES[dtype], **PLAIN
    )
    if window == (5, 5) and C * K > 1 << 14:
        options |= dict(C=128, K=128)
    case = conv_case(**options)
    assert any(name.endswith("_winograd") for name in kernels_of(case))
    exact = gradient_of_weight(case, dtype=torch.float64)
    assert rms(gradient_of_weight(case) - exact) <= 1.01 * rms(exact.to(DTYPES[dtype]) - exact)


@pytest.mark.parametrize(("dtype", "window"), EVERY, ids=str)
@pytest.mark.parametrize("values", [(math.inf,), (-math.inf, math.inf), (math.nan,), (math.inf, math.nan)], ids=str)
def test_gradients_of_infinities_and_nan_are_those_of_the_definition(values, dtype, window):
    case = conv_case(
        N=2, C=17, H=16, W=15, K=37, window=window, padding=same_padding(window), dtype=DTYPES[dtype], **PLAIN
    )
    x = case.tensors["x"].clone()
    for i, value in enumerate(values):
        x[i, 3 * i, 0, i] = value  # at the border, where not every tap meets it
    case = case.but(x=x)
    exact = gradient_of_weight(case, dtype=torch.float64)
    names = kernels_of(case)
    found = gradient_of_weight(case)
    assert exact.isfinite().any() and not exact.isfinite().all()
    for kind in (torch.isfinite, torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(found), kind(exact)), kind.__name__
    assert len(names) == 2, names  # what computed it at last is counted too


@pytest.mark.parametrize(("dtype", "window"), EVERY, ids=str)
def test_gradients_do_not_depend_on_the_threads(dtype, window):
    case = conv_case(
        N=3, C=40, H=68, W=70, K=36, window=window, padding=same_padding(window), dtype=DTYPES[dtype], **PLAIN
    )
    results = with_threads(lambda: gradient_of_weight(case))
    assert all(torch.equal(result, results[0]) for result in results)
