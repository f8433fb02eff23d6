"""The convolutions of stride 1 that the CPU computes by Winograd's algorithm."""

import math

import pytest
import torch
import torch.nn.functional as F
from instruction_sets import without_bf16_products, without_tiles
from operator_cases import DTYPES, Case, check, conv_case, evaluate, evaluate_on, in_layout, pair_case, run
from oracle import assert_as_accurate_as_torch, conv2d_bn_act, geometric_mean, rms
from winograd_cases import (
    BLOCKS,
    CHANGES,
    CONV,
    LARGE,
    LARGE_CHANGES,
    NARROW,
    NARROW_CHANGES,
    PLAIN,
    same_padding,
    with_threads,
)

from inception_kernels import backends

pytestmark = pytest.mark.usefixtures("poisoned_memory")
EVERY = [("f64", (3, 3), 20), *BLOCKS]  # float64 is always computed by the definition


@pytest.fixture(autouse=True)
def no_tiles(use_isa):
    """Products of bf16 tiles are too fast for the algorithm to gain."""
    use_isa(without_tiles(backends.cpu_isa()))


def counted(case: Case) -> str:
    backends.reset_counters()
    run(case, "cpu")
    return " ".join(backends.counters())


def torchs_of(case: Case) -> list[torch.Tensor]:
    return [
        conv2d_bn_act(**case.but(x=in_layout(case.tensors["x"], layout)).tensors, **case.options)
        for layout in ("contiguous", "channels_last")
    ]


def exact_of(case: Case) -> torch.Tensor:
    return conv2d_bn_act(**case.cast(torch.float64).tensors, **case.options)


@pytest.mark.parametrize(("change", "used"), CHANGES, ids=str)
def test_which_convolutions(change, used):
    names = counted(conv_case(**dict(N=1, C=16, H=9, W=10, K=16, **CONV) | change))
    assert ("_winograd" in names) == used


@pytest.mark.parametrize(("change", "used"), LARGE_CHANGES, ids=str)
def test_which_convolutions_go_by_large_blocks_alone(change, used):
    names = counted(conv_case(**dict(N=1, C=16, H=36, W=37, K=16, **PLAIN) | change))
    assert ("_winograd" in names) == used


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize(("change", "used"), NARROW_CHANGES, ids=str)
def test_which_convolutions_of_16_bits(change, used, dtype):
    names = counted(conv_case(**dict(N=1, C=16, H=8, W=9, K=16, dtype=DTYPES[dtype], **PLAIN) | change))
    assert ("_winograd" in names) == used


@pytest.mark.parametrize(("dtype", "window", "C"), EVERY, ids=str)
@pytest.mark.parametrize("padding", [0, 1, 2, (0, 3)], ids=str)
@pytest.mark.parametrize(("H", "W"), [(7, 7), (8, 7), (7, 12), (9, 30), (28, 29)])
def test_sizes(H, W, padding, dtype, window, C):
    """Blocks that lie wholly or partly outside of the output, and row panels of all lengths."""
    if (dtype, window, C - 1) in LARGE:
        W += 580  # or it would be a small image; a multiple of a large block's width
    case = conv_case(N=2, C=C, H=H, W=W, K=35, window=window, padding=padding, dtype=DTYPES[dtype], **PLAIN)
    assert ("_winograd" in counted(case)) == (dtype != "f64")
    assert_as_accurate_as_torch(run(case, "cpu"), exact_of(case), torchs_of(case), name="y")


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(("H", "W"), [(1, 1), (3, 3), (4, 2)])
def test_images_smaller_than_a_block(H, W, dtype):
    case = conv_case(N=3, C=17, H=H, W=W, K=33, dtype=DTYPES[dtype], **CONV)
    assert_as_accurate_as_torch(run(case, "cpu"), exact_of(case), torchs_of(case), name="y")


@pytest.mark.parametrize(("dtype", "window", "least"), LARGE, ids=str)
@pytest.mark.parametrize("narrower", [0, 1])
def test_batches_of_images_as_wide_as_the_window(narrower, dtype, window, least):
    """Smaller than the inputs of a large block. Of narrower ones the definition adds fewer values up, the algorithm does
    not."""
    H, W = (5 if size == 1 else size - narrower for size in window)
    case = conv_case(
        N=3, C=least + 1, H=H, W=W, K=33, window=window, padding=same_padding(window), dtype=DTYPES[dtype],
        training=True,
    )  # fmt: skip
    assert ("_winograd" in counted(case)) == (not narrower)
    check(case, "cpu")


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_many_weights_go_by_smaller_blocks(dtype):
    case = conv_case(N=1, C=130, H=17, W=15, K=127, dtype=DTYPES[dtype], **CONV)
    assert "_winograd" in counted(case)
    assert_as_accurate_as_torch(run(case, "cpu"), exact_of(case), torchs_of(case), name="y")


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512bf16"])
@pytest.mark.parametrize(("dtype", "window", "C"), BLOCKS, ids=str)
def test_every_instruction_set_with_all_that_may_follow(isa, dtype, window, C, use_isa):
    use_isa(isa)
    options = dict(N=2, C=C, K=C + 20, window=window, padding=same_padding(window), bias=True, residual=True)
    W = max(19, 20480 // (13 * C) + 1)  # no small image
    case = conv_case(H=13, W=W, **options, dtype=DTYPES[dtype], activation="silu")
    assert f"cpu_{without_bf16_products(isa) if dtype != 'bf16' else isa}_{dtype}_winograd" in counted(case)
    check(case, "cpu")
    check(conv_case(H=13, W=19, **options, dtype=DTYPES[dtype], activation="relu", training=True), "cpu")


@pytest.mark.parametrize(("C", "K"), [(16, 16), (32, 64)])
def test_the_typical_error(C, K):
    """Over many draws, in the root mean square: at most that of PyTorch's less accurate memory format."""
    ratios: dict[str, list[torch.Tensor]] = {"contiguous": [], "channels_last": []}
    for seed in range(12):
        case = conv_case(N=1, C=C, H=10, W=10, K=K, seed=seed, **CONV)
        exact = exact_of(case)
        for found, torchs in zip(ratios.values(), torchs_of(case), strict=True):
            found.append(rms(run(case, "cpu") - exact) / rms(torchs - exact))
    assert min(map(geometric_mean, ratios.values())) < 1


TYPICAL = [
    ((3, 3), 64, 64, 28),
    ((3, 3), 97, 65, 20),
    ((3, 3), 256, 256, 14),
    ((3, 3), 448, 64, 8),
    ((5, 5), 32, 32, 28),
    ((5, 5), 50, 61, 28),
    ((1, 7), 128, 128, 14),
    ((7, 1), 192, 192, 14),
]


@pytest.mark.parametrize("before", ["none", "relu"])
@pytest.mark.parametrize(("window", "C", "K", "size"), TYPICAL, ids=str)
def test_the_typical_error_of_large_blocks(window, C, K, size, before):
    """Of the result and of the gradient of x, over several draws and in the root mean square: less than twice that of
    PyTorch's less accurate memory format."""
    ratios: dict[str, list[torch.Tensor]] = {"y": [], "x": []}
    for seed in range(4):
        case = conv_case(N=1, C=C, H=size, W=size, K=K, window=window, padding=same_padding(window), seed=seed, **PLAIN)
        if before == "relu":
            case = case.but(x=case.tensors["x"].relu())
        grad_y = torch.randn(1, K, size, size, generator=torch.Generator().manual_seed(seed))
        exact = evaluate(conv2d_bn_act, case.cast(torch.float64), grad_y.double())
        torchs = [
            evaluate(conv2d_bn_act, case.but(x=in_layout(case.tensors["x"], layout)), in_layout(grad_y, layout))
            for layout in ("contiguous", "channels_last")
        ]
        ours = evaluate_on("cpu", case, grad_y)
        ratios["y"].append(rms(ours.y - exact.y) / max(rms(t.y - exact.y) for t in torchs))
        gradient = exact.grads["x"]
        ratios["x"].append(rms(ours.grads["x"] - gradient) / max(rms(t.grads["x"] - gradient) for t in torchs))
    assert max(map(geometric_mean, ratios.values())) < 2


SMALL = [((3, 3), 64, 64, 10), ((3, 3), 64, 64, 5), ((3, 3), 97, 65, 7), ((3, 3), 256, 256, 8), ((5, 5), 32, 32, 12),
         ((5, 5), 50, 61, 9), ((1, 7), 128, 128, 10), ((7, 1), 192, 192, 10), ((7, 1), 192, 192, 7)]  # fmt: skip


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize(("window", "C", "K", "size"), SMALL, ids=str)
def test_small_single_images(window, C, K, size, isa, use_isa):
    """PyTorch computes one image of up to 20,480 values by a more accurate method than several. Weights that are packed
    for large images are made those of the definition again."""
    use_isa(isa)
    ratios = []
    for seed in range(6):
        options = dict(C=C, K=K, H=size, W=size, window=window, padding=same_padding(window), seed=seed)
        case = conv_case(N=1, **options, **PLAIN)
        exact, torchs = exact_of(case), torchs_of(case)
        ratios.append(rms(run(case, "cpu") - exact) / max(rms(y - exact) for y in torchs))
        assert f"cpu_{isa}_f32_restored" in counted(case)
        assert "_winograd" not in counted(conv_case(N=1, training=True, **options))
        assert "_winograd" in counted(conv_case(N=2, training=True, **options))
    assert geometric_mean(ratios) < 2


@pytest.mark.parametrize(
    ("change", "restored"),
    [
        (dict(), False),
        (dict(C=64, W=20), True),
        (dict(C=63, W=20), False),  # in small blocks, which lose nothing
        (dict(K=64, W=20), True),
        (dict(N=3, C=64, W=20), True),  # an image's bits do not depend on the batch
        (dict(C=256, H=8, W=10, K=257), False),  # packed for the definition
        (dict(H=2, W=200), True),  # narrower than the window
        (dict(H=200, W=2), True),
        (dict(H=3, W=200), False),
        (dict(C=64, W=20, dtype=torch.bfloat16), False),
    ],
    ids=str,
)
def test_what_is_a_small_image(change, restored):
    """Of 64 times 16 times 20 values in x or y; in 16 bits nothing is gained."""
    case = conv_case(**dict(N=1, C=65, H=16, W=21, K=65, window=(3, 3), padding=1, **PLAIN) | change)
    assert ("_restored" in counted(case)) == restored


@pytest.mark.parametrize(
    ("window", "C", "width"),
    [(window, least + 1, width) for _, window, least in LARGE for width in (1, 2, 4, 6) if width < max(window)],
    ids=str,
)
def test_images_narrower_than_the_window(window, C, width):
    """In evaluation; however long they are in the other direction."""
    for H, W in ((width, 90), (90, width)):
        if window[0] <= H and window[1] <= W:
            continue
        case = conv_case(N=2, C=C, H=H, W=W, K=61, window=window, padding=same_padding(window), **PLAIN)
        assert "_restored" in counted(case)
        assert_as_accurate_as_torch(run(case, "cpu"), exact_of(case), torchs_of(case), name="y")


@pytest.mark.parametrize(("dtype", "window", "least"), LARGE, ids=str)
def test_small_images_have_the_bits_of_any_batch_and_number_of_threads(dtype, window, least):
    case = conv_case(
        N=3, C=least + 1, H=9, W=11, K=51, window=window, padding=same_padding(window), dtype=DTYPES[dtype],
        bias=True, residual=True, activation="silu",
    )  # fmt: skip
    assert "_restored" in counted(case)
    check(case, "cpu")
    first, *others = with_threads(lambda: run(case, "cpu"))
    for n in range(3):
        tensors = case.tensors
        one = case.but(x=tensors["x"][n : n + 1], residual=tensors["residual"][n : n + 1])
        others.append(torch.cat([first[:n], run(one, "cpu"), first[n + 1 :]]))
    assert all(torch.equal(y, first) for y in others)


@pytest.mark.parametrize(("windows", "least"), [(((3, 3), (3, 3)), 64), (((1, 7), (7, 1)), 128)], ids=str)
@pytest.mark.parametrize("small", [True, False])
def test_a_pair_does_what_its_convolutions_do(small, windows, least):
    case = pair_case(
        N=2, C=least, H=8, W=20480 // least // 8 + (not small), M=least, K=least, windows=windows,
        padding1=same_padding(windows[0]), padding2=same_padding(windows[1]), **PLAIN,
    )  # fmt: skip
    y = case.tensors["x"]
    for i, activation in enumerate(("relu", "none")):
        options = dict(window=windows[i], padding=same_padding(windows[i]), activation=activation, bn=False)
        single = conv_case(**options).but(x=y, weight=case.tensors[f"weight{i + 1}"])
        assert ("_restored" in counted(single)) == small
        y = run(single, "cpu")
    assert torch.equal(run(case, "cpu"), y)


@pytest.mark.parametrize(("dtype", "window"), NARROW, ids=str)
@pytest.mark.parametrize(("C", "K"), [(16, 32), (64, 96), (192, 192)])
def test_the_typical_error_of_16_bits_is_that_of_storing_the_result(C, K, dtype, window):
    case = conv_case(
        N=1, C=C, H=24, W=24, K=K, window=window, padding=same_padding(window), dtype=DTYPES[dtype], **PLAIN
    )
    exact = exact_of(case)
    assert rms(run(case, "cpu") - exact) <= 1.01 * rms(exact.to(DTYPES[dtype]) - exact)


@pytest.mark.parametrize(("dtype", "window", "C"), BLOCKS, ids=str)
def test_a_large_pixel_costs_its_neighbours_few_digits(dtype, window, C):
    """Errors are relative to what lies under a block; of float32's 24 bits seven may be lost."""
    case = conv_case(
        N=1, C=C, H=26, W=27, K=40, window=window, padding=same_padding(window), dtype=DTYPES[dtype], **PLAIN
    )
    assert "_winograd" in counted(case)
    x = case.tensors["x"].clone()
    x[0, :, 9, 10] *= 1000
    case = case.but(x=x)
    exact = exact_of(case)
    rounding = torch.finfo(DTYPES[dtype]).eps * exact.abs()
    assert ((run(case, "cpu") - exact).abs() <= rounding + 2**-17 * exact.abs().max()).all()


@pytest.mark.parametrize(("dtype", "window", "C"), BLOCKS, ids=str)
def test_infinities_and_nan_have_the_effect_of_the_definition(dtype, window, C):
    padding = same_padding(window)
    case = conv_case(N=2, C=C, H=26, W=25, K=37, window=window, padding=padding, dtype=DTYPES[dtype], **PLAIN)
    assert "_winograd" in counted(case)
    clean = run(case, "cpu")
    x = case.tensors["x"].clone()
    places = torch.randperm(26 * 25, generator=torch.Generator().manual_seed(0))[:6]
    for i, value in enumerate([math.inf, -math.inf, math.nan, math.inf, -math.inf, math.inf]):
        x[i % 2, i, places[i] // 25, places[i] % 25] = value
    case = case.but(x=x)
    dirty, exact = run(case, "cpu"), exact_of(case)
    touched = F.max_pool2d((~x.isfinite()).any(1, True).float(), window, 1, padding).bool().expand_as(dirty)
    assert touched.any() and not touched.all()
    if (dtype, window, C) == ("f32", (3, 3), 17):  # blocks of 2 x 2 depend on no more than the definition
        assert torch.equal(dirty[~touched], clean[~touched])
    assert_as_accurate_as_torch(
        dirty[~touched], exact[~touched], [y[~touched] for y in torchs_of(case)], name="what no such value touches"
    )
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(dirty), kind(exact)), kind.__name__


@pytest.mark.parametrize(("dtype", "window", "C"), [case for case in BLOCKS if case[0] != "f16"], ids=str)
def test_values_too_large_for_the_transforms(dtype, window, C):
    """Sums and differences of them overflow, the result does not."""
    case = conv_case(
        N=1, C=C, H=32, W=34, K=19, window=window, padding=same_padding(window), dtype=DTYPES[dtype], **PLAIN
    )
    assert "_winograd" in counted(case)
    case = case.but(x=case.tensors["x"] * 2.0**124, weight=case.tensors["weight"] * 2.0**-10)
    y = run(case, "cpu")
    assert y.isfinite().all()
    exact = exact_of(case)
    assert ((y - exact).abs() <= 2 * torch.finfo(DTYPES[dtype]).eps * exact.abs() + 2.0**-17 * exact.abs().max()).all()


@pytest.mark.parametrize(
    ("dtype", "windows", "C", "M", "K"),
    [
        ("f32", ((3, 3), (3, 3)), 16, 20, 33),
        ("f32", ((3, 3), (3, 3)), 64, 68, 33),
        ("f32", ((1, 7), (7, 1)), 128, 132, 33),
        ("f32", ((5, 5), (5, 5)), 32, 36, 33),
        ("f32", ((5, 5), (3, 3)), 256, 256, 16),  # of so few channels that a band is a small image, and the whole none
        ("bf16", ((3, 3), (3, 3)), 16, 20, 33),
        ("bf16", ((1, 7), (7, 1)), 16, 20, 33),
        ("f16", ((7, 1), (1, 7)), 16, 20, 33),
        ("f16", ((5, 5), (5, 5)), 16, 20, 33),
    ],
    ids=str,
)
def test_bands_of_a_pair_have_the_bits_of_the_whole(dtype, windows, C, M, K):
    """A pair cuts large images into bands of rows, as many as there are threads: blocks stay where they were."""
    case = pair_case(
        N=1, C=C, H=61, W=1280 * 16 // C, M=M, K=K, windows=windows, padding1=same_padding(windows[0]), padding2=same_padding(windows[1]),
        dtype=DTYPES[dtype], activation="none",
    )  # fmt: skip
    results = with_threads(lambda: run(case, "cpu"))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize(("dtype", "window", "C"), BLOCKS, ids=str)
def test_gradients_of_x_count_themselves(dtype, window, C):
    for changes, winograd in [(dict(), 1), (dict(stride=3), 0)]:
        options = dict(window=window, padding=same_padding(window), dtype=DTYPES[dtype], training=True) | changes
        case = conv_case(N=2, C=C, H=30, W=31, K=C, **options)
        y = run(case, "cpu")
        backends.reset_counters()
        evaluate_on("cpu", case, torch.ones_like(y))
        names = [name for name in backends.counters() if "conv2d_bn_act.backward" in name]
        assert sum(name.endswith("_winograd_data") for name in names) == winograd, names


@pytest.mark.parametrize(("N", "H", "used"), [(1, 31, False), (1, 32, True), (2, 15, False), (2, 16, True)])
def test_weights_that_are_used_once_must_earn_it(N, H, used, use_isa):
    """A training step transforms them anew: against products of bf16 from 512 pixels on."""
    use_isa("avx512bf16")
    case = conv_case(N=N, C=16, H=H, W=16, K=16, window=(3, 3), padding=1, dtype=torch.bfloat16, training=True)
    assert ("_winograd" in counted(case)) == used
    use_isa("avx512")
    assert "_winograd" in counted(case)


@pytest.mark.parametrize(("dtype", "window", "C"), BLOCKS, ids=str)
@pytest.mark.parametrize("size", [23, 70])
def test_training_does_not_depend_on_the_threads(size, dtype, window, C):
    """Weights are packed by all threads for all, or by each for itself where it has few rows."""
    options = dict(window=window, padding=same_padding(window), dtype=DTYPES[dtype], training=True)
    case = conv_case(N=2, C=C, H=size, W=size, K=C + 3, **options)
    grad_y = torch.randn(2, C + 3, size, size, generator=torch.Generator().manual_seed(1)).to(DTYPES[dtype])
    first, *others = with_threads(lambda: evaluate_on("cpu", case, grad_y))
    for other in others:
        assert torch.equal(other.y, first.y)
        assert torch.equal(other.grads["x"], first.grads["x"])
