"""The gradients of 3 x 3 weights of stride 1 that the CPU computes by Winograd's algorithm."""

import math

import pytest
import torch
from instruction_sets import without_bf16_products
from operator_cases import DTYPES, Case, check, conv_case, evaluate, evaluate_on, in_layout
from oracle import conv2d_bn_act

from inception_kernels import backends

pytestmark = pytest.mark.usefixtures("poisoned_memory")
CONV = dict(window=(3, 3), padding=1, bn=False, activation="none")


@pytest.fixture(autouse=True)
def products_of_float32(use_isa):
    """Products of bf16 have too few digits for the algorithm."""
    use_isa(without_bf16_products(backends.cpu_isa()))


def gradient_of_weight(case: Case, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """By our kernels, or in `dtype` by PyTorch's."""
    y = conv2d_bn_act(**case.tensors, **case.options)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype)
    if dtype is None:
        return evaluate_on("cpu", case, grad_y).grads["weight"]
    return evaluate(conv2d_bn_act, case.cast(dtype), grad_y.to(dtype)).grads["weight"]


# Changes to a convolution that is computed by the algorithm, and whether it still is.
CHANGES = [
    (dict(), True),
    (dict(dtype=torch.bfloat16), True),
    (dict(dtype=torch.float16), True),
    (dict(dtype=torch.float64), False),
    (dict(stride=2), False),
    (dict(stride=(1, 2)), False),
    (dict(stride=(2, 1)), False),
    (dict(dilation=2), False),
    (dict(dilation=(1, 2)), False),
    (dict(window=(3, 5)), False),
    (dict(window=(5, 3)), False),
    (dict(window=(1, 3), padding=(0, 1)), False),
    (dict(window=(3, 1), padding=(1, 0)), False),
    (dict(C=15), False),
    (dict(K=15), False),
    (dict(C=256, K=257), False),  # transformed weights, or their sums, of more than 4 MiB
]


@pytest.mark.parametrize(
    ("change", "used"),
    [
        *CHANGES,
        (dict(H=15, W=14), False),  # 56 blocks
        (dict(N=2, H=9, W=15), True),  # 80, of which an odd row and column are half empty
    ],
    ids=str,
)
def test_which_gradients(change, used):
    case = conv_case(**dict(N=1, C=16, H=16, W=17, K=16, **CONV) | change)
    backends.reset_counters()
    gradient_of_weight(case)
    names = [name for name in backends.counters() if name.startswith("conv2d_bn_act.backward")]
    assert any(name.endswith("_winograd") for name in names) == used, names


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("padding", [0, 1, 2, (0, 3)], ids=str)
@pytest.mark.parametrize(
    ("N", "C", "H", "W", "K"),
    [
        (2, 16, 15, 19, 29),
        (1, 33, 37, 18, 16),
        (70, 17, 3, 3, 43),  # an image is one row of blocks or two
        (3, 40, 68, 70, 20),  # several chunks, and several partial sums
        (1, 32, 3, 200, 64),
    ],
)
def test_gradients(N, C, H, W, K, padding, dtype):
    check(conv_case(N=N, C=C, H=H, W=W, K=K, dtype=DTYPES[dtype], **CONV | dict(padding=padding)), "cpu")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_gradients_of_every_instruction_set(isa, layout, use_isa):
    use_isa(isa)
    case = conv_case(N=2, C=37, H=33, W=35, K=45, **CONV)
    case = case.but(weight=in_layout(case.tensors["weight"], layout))
    backends.reset_counters()
    check(case, "cpu")
    assert backends.counters()[f"conv2d_bn_act.backward.cpu_{isa}_f32_winograd"] == 1


def test_products_of_bf16_have_too_few_digits(use_isa):
    use_isa("avx512bf16")
    case = conv_case(N=1, C=16, H=16, W=17, K=16, dtype=torch.bfloat16, **CONV)
    backends.reset_counters()
    gradient_of_weight(case)
    names = [name for name in backends.counters() if name.startswith("conv2d_bn_act.backward")]
    assert len(names) == 1
    assert not names[0].endswith("_winograd"), names


@pytest.mark.parametrize(("C", "K", "size"), [(16, 16, 40), (32, 64, 60), (64, 96, 35), (80, 192, 20), (256, 256, 16)])
def test_the_typical_error_of_gradients(C, K, size):
    """Over many draws, in the root mean square: at most that of PyTorch's less accurate memory format."""
    ratios: dict[str, list[torch.Tensor]] = {"contiguous": [], "channels_last": []}
    for seed in range(6):
        case = conv_case(N=1, C=C, H=size, W=size, K=K, seed=seed, **CONV)
        exact = gradient_of_weight(case, dtype=torch.float64)
        ours = (gradient_of_weight(case) - exact).square().mean().sqrt()
        for layout, found in ratios.items():
            torchs = gradient_of_weight(case.but(x=in_layout(case.tensors["x"], layout)), dtype=torch.float32)
            found.append(ours / (torchs - exact).square().mean().sqrt())
    assert min(math.exp(torch.stack(found).log().mean()) for found in ratios.values()) < 1


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("values", [(math.inf,), (-math.inf, math.inf), (math.nan,), (math.inf, math.nan)], ids=str)
def test_gradients_of_infinities_and_nan_are_those_of_the_definition(values, dtype):
    case = conv_case(N=2, C=17, H=16, W=15, K=37, dtype=DTYPES[dtype], **CONV)
    x = case.tensors["x"].clone()
    for i, value in enumerate(values):
        x[i, 3 * i, 0, i] = value  # at the border, where not every tap meets it
    case = case.but(x=x)
    exact = gradient_of_weight(case, dtype=torch.float64)
    backends.reset_counters()
    found = gradient_of_weight(case)
    assert exact.isfinite().any() and not exact.isfinite().all()
    for kind in (torch.isfinite, torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(found), kind(exact)), kind.__name__
    names = [name for name in backends.counters() if name.startswith("conv2d_bn_act.backward")]
    assert len(names) == 2, names  # what computed it at last is counted too


def test_gradients_do_not_depend_on_the_threads():
    case = conv_case(N=3, C=40, H=68, W=70, K=36, **CONV)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(gradient_of_weight(case))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)
