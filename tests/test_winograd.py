"""The 3 x 3 convolutions of stride 1 that the CPU computes by Winograd's algorithm."""

import math

import pytest
import torch
import torch.nn.functional as F
from instruction_sets import without_bf16_products
from operator_cases import DTYPES, Case, check, conv_case, evaluate, evaluate_on, in_layout, pair_case, run
from oracle import assert_as_accurate_as_torch, conv2d_bn_act

from inception_kernels import backends

pytestmark = pytest.mark.usefixtures("poisoned_memory")
CONV = dict(window=(3, 3), padding=1, bn=False, activation="none")


def counted(case) -> str:
    backends.reset_counters()
    run(case, "cpu")
    return " ".join(backends.counters())


@pytest.fixture(autouse=True)
def products_of_float32(use_isa):
    """Products of bf16 have too few digits for the algorithm."""
    use_isa(without_bf16_products(backends.cpu_isa()))


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


@pytest.mark.parametrize(("change", "used"), CHANGES, ids=str)
def test_which_convolutions(change, used):
    names = counted(conv_case(**dict(N=1, C=16, H=6, W=7, K=16, **CONV) | change))
    assert ("_winograd" in names) == used


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [0, 1, 2, (0, 3)], ids=str)
@pytest.mark.parametrize(("H", "W"), [(3, 3), (4, 3), (3, 8), (7, 5), (11, 30), (28, 29)])
def test_sizes(H, W, padding, dtype):
    """Blocks that lie wholly or partly outside of the output, and row panels of all lengths."""
    case = conv_case(N=2, C=20, H=H, W=W, K=35, dtype=DTYPES[dtype], **CONV | dict(padding=padding))
    exact = conv2d_bn_act(**case.cast(torch.float64).tensors, **case.options)
    torchs = [
        conv2d_bn_act(**case.but(x=in_layout(case.tensors["x"], layout)).tensors, **case.options)
        for layout in ("contiguous", "channels_last")
    ]
    assert_as_accurate_as_torch(run(case, "cpu"), exact, torchs, name="y")


@pytest.mark.parametrize(("C", "K"), [(16, 16), (32, 64), (64, 96), (80, 192), (256, 256)])
def test_the_typical_error(C, K):
    """Over many draws, in the root mean square: at most that of PyTorch's less accurate memory format."""
    ratios: dict[str, list[torch.Tensor]] = {"contiguous": [], "channels_last": []}
    for seed in range(12):
        case = conv_case(N=1, C=C, H=10, W=10, K=K, seed=seed, **CONV)
        exact = conv2d_bn_act(**case.cast(torch.float64).tensors, **case.options)
        ours = (run(case, "cpu") - exact).square().mean().sqrt()
        for layout, found in ratios.items():
            torchs = conv2d_bn_act(**case.but(x=in_layout(case.tensors["x"], layout)).tensors, **case.options)
            found.append(ours / (torchs - exact).square().mean().sqrt())
    assert min(math.exp(torch.stack(found).log().mean()) for found in ratios.values()) < 1


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_infinities_and_nan_have_the_effect_of_the_definition(dtype):
    case = conv_case(N=2, C=17, H=12, W=13, K=37, dtype=DTYPES[dtype], **CONV)
    clean = run(case, "cpu")
    x = case.tensors["x"].clone()
    places = torch.randperm(12 * 13, generator=torch.Generator().manual_seed(0))[:6]
    for i, value in enumerate([math.inf, -math.inf, math.nan, math.inf, -math.inf, math.inf]):
        x[i % 2, i, places[i] // 13, places[i] % 13] = value
    dirty = run(case.but(x=x), "cpu")
    exact = conv2d_bn_act(**case.but(x=x).cast(torch.float64).tensors, **case.options)
    touched = F.max_pool2d((~x.isfinite()).any(1, True).float(), 3, 1, 1).bool().expand_as(dirty)
    assert touched.any() and not touched.all()
    assert torch.equal(dirty[~touched], clean[~touched])
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(dirty), kind(exact)), kind.__name__


def test_bands_of_a_pair_have_the_bits_of_the_whole():
    """A pair cuts large images into bands of rows, as many as there are threads: blocks stay where they were."""
    case = pair_case(
        N=1, C=16, H=61, W=640, M=20, K=33, windows=((3, 3), (3, 3)), padding1=1, padding2=1, activation="none"
    )
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(run(case, "cpu"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


# ---- the gradient of the weight


def gradient_of_weight(case: Case, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """By our kernels, or in `dtype` by PyTorch's."""
    y = conv2d_bn_act(**case.tensors, **case.options)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype)
    if dtype is None:
        return evaluate_on("cpu", case, grad_y).grads["weight"]
    return evaluate(conv2d_bn_act, case.cast(dtype), grad_y.to(dtype)).grads["weight"]


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
    names = [name for name in backends.counters() if name.startswith("conv2d_bn_act.")]
    assert len(names) == 2
    assert not any(name.endswith("_winograd") for name in names), names


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
