"""Max pools: PyTorch's values; in training steps which pixel won, and gradients added with one rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import GRADIENT_LAYOUTS, assert_as_accurate, gradient_layouts, needs_kernels, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import without_bf16_products
from torch import Tensor

from inception_kernels import backends
from inception_kernels.ops.max_pool2d import max_pool2d

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_kernels]

INF, NAN = float("inf"), float("nan")
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# kernel, stride, padding
WINDOWS = {
    "3x3_s2": ((3, 3), (2, 2), (0, 0)),
    "3x3_s2_p1": ((3, 3), (2, 2), (1, 1)),
    "2x2_s2": ((2, 2), (2, 2), (0, 0)),
    "3x3_s1_p1": ((3, 3), (1, 1), (1, 1)),
    "5x3_s1x2_p2x1": ((5, 3), (1, 2), (2, 1)),
    "2x3_s3x1_p1x0": ((2, 3), (3, 1), (1, 0)),
    "1x1_s2": ((1, 1), (2, 2), (0, 0)),
    "16x16_s5_p8": ((16, 16), (5, 5), (8, 8)),
}
APART = ("2x2_s2", "1x1_s2")  # windows that share no pixel: nothing is added
SIZES = [(1, 1, 7, 7), (2, 3, 17, 13), (1, 64, 8, 9), (2, 131, 7, 11), (3, 72, 1, 30), (1, 545, 5, 6)]


def whole(*sizes: int, seed: int = 0) -> Tensor:
    """Few values: many ties in every window, and sums that are exact in every dtype."""
    return torch.randint(-2, 3, sizes, generator=torch.Generator().manual_seed(seed)).double()


def with_specials(x: Tensor, seed: int = 0) -> Tensor:
    picked = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed + 1))
    for low, value in ((0.0, NAN), (0.05, INF), (0.1, -INF), (0.15, -0.0), (0.2, 0.0)):
        x[(picked >= low) & (picked < low + 0.05)] = value
    return x


def numbers_of_taps(x: Tensor, indices: Tensor, kernel, stride, padding) -> Tensor:
    """r * S + s from PyTorch's h * W + w."""
    h, w = indices // x.shape[3], indices % x.shape[3]
    p = torch.arange(indices.shape[2]).view(-1, 1)
    q = torch.arange(indices.shape[3])
    return (h - p * stride[0] + padding[0]) * kernel[1] + w - q * stride[1] + padding[1]


def check(x: Tensor, grad_y: Tensor | None = None, window=WINDOWS["3x3_s2_p1"], exact_sums: bool = False) -> None:
    kernel, stride, padding = window
    expected, indices = F.max_pool2d(x, kernel, stride, padding, return_indices=True)
    leaf, own = x.detach().requires_grad_(), x.detach().requires_grad_()
    y, taps = torch.ops.inception_kernels.max_pool2d_training(leaf, kernel, stride, padding)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.signbit(y) | y.isnan(), torch.signbit(expected) | y.isnan())
    assert taps.dtype == torch.uint8
    assert torch.equal(taps.long(), numbers_of_taps(x, indices, kernel, stride, padding))
    assert y.is_contiguous(memory_format=torch.channels_last)
    inferred = max_pool2d(x.detach(), kernel, stride, padding)
    torch.testing.assert_close(inferred, expected, rtol=0, atol=0, equal_nan=True)
    assert inferred.stride() == y.stride()

    if grad_y is None:
        grad_y = normal(*y.shape, seed=5).to(x.dtype).contiguous(memory_format=torch.channels_last)
    grad_x = torch.autograd.grad(max_pool2d(leaf, kernel, stride, padding), leaf, grad_y)[0]
    assert torch.equal(grad_x, torch.autograd.grad(y, leaf, grad_y)[0])
    assert grad_x.is_contiguous(memory_format=torch.channels_last)
    baseline = torch.autograd.grad(F.max_pool2d(own, kernel, stride, padding), own, grad_y)[0]
    if exact_sums:
        assert torch.equal(grad_x, baseline)
        return
    exact = torch.zeros(*x.shape[:2], x.shape[2] * x.shape[3], dtype=torch.float64)
    exact.scatter_add_(2, indices.flatten(2), grad_y.double().flatten(2))
    assert_as_accurate(grad_x, baseline, exact.view(x.shape), "grad_x")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_core_geometry(size, window, dtype, layout):
    kernel, _, padding = WINDOWS[window]
    if any(k > n + 2 * p for k, n, p in zip(kernel, size[2:], padding, strict=True)):
        with pytest.raises(RuntimeError, match="no larger than the padded input"):
            max_pool2d(torch.zeros(size), *WINDOWS[window])
        return
    x = normal(*size).to(DTYPES[dtype]).contiguous(memory_format=LAYOUTS[layout])
    check(x, window=WINDOWS[window], exact_sums=window in APART)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("C", [1, 15, 67, 128])
def test_ties_and_special_values_on_every_instruction_set(C, window, dtype, isa, use_isa):
    use_isa(isa)
    size = (2, C, 13, 10)
    kernel, stride, padding = WINDOWS[window]
    P, Q = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size[2:], kernel, stride, padding, strict=True))
    grad_y = whole(2, C, P, Q, seed=3).to(DTYPES[dtype])
    for values in (whole(*size), with_specials(whole(*size)), with_specials(normal(*size))):
        x = values.to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
        check(x, grad_y, WINDOWS[window], exact_sums=True)
    backends.reset_counters()
    x = whole(*size).to(DTYPES[dtype]).requires_grad_()
    max_pool2d(x, *WINDOWS[window]).sum().backward()
    ran = {name for name in backends.counters() if name.startswith("max_pool2d")}
    assert ran == {f"max_pool2d.{direction}.cpu_{isa}_{dtype}" for direction in ("forward", "backward")}
    backends.reset_counters()
    max_pool2d(x.detach(), *WINDOWS[window])
    assert backends.counters().get(f"max_pool2d.inference.cpu_{isa}_{dtype}") == 1


def test_counters_say_what_ran():
    x = normal(1, 8, 6, 6).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    isa = without_bf16_products(backends.cpu_isa())
    backends.reset_counters()
    y = max_pool2d(x, (3, 3), (2, 2), (1, 1))
    assert backends.counters() == {f"max_pool2d.forward.cpu_{isa}_bf16": 1}
    y.backward(torch.ones_like(y))
    assert backends.counters()[f"max_pool2d.backward.cpu_{isa}_bf16"] == 1
    assert len(backends.counters()) == 2
    backends.reset_counters()
    with torch.no_grad():
        max_pool2d(x, (3, 3), (2, 2), (1, 1))
    assert backends.counters() == {f"max_pool2d.inference.cpu_{isa}_bf16": 1}


@pytest.mark.parametrize("value", [-INF, NAN, INF])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_but_one_special_value(dtype, value):
    x = torch.full((1, 19, 7, 7), value, dtype=DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    for window in WINDOWS.values():
        if window[0][0] <= 7:
            check(x, window=window)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["channel_slice", "row_slice", "batch_slice", "expanded", "transposed"])
def test_views(layout, dtype):
    wide = normal(6, 40, 15, 14).to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    x = {
        "channel_slice": wide[:, 3:22],
        "row_slice": wide[:, :, 1::2, :9],
        "batch_slice": wide[1::2],
        "expanded": wide[:1, :, :1].expand(3, 40, 8, 14),
        "transposed": wide.transpose(2, 3),
    }[layout]
    backends.reset_counters()
    check(x)
    assert not any(name.startswith("layout") for name in backends.counters())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", GRADIENT_LAYOUTS)
def test_gradients_of_any_layout(layout, dtype):
    x = normal(2, 21, 9, 9).to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    check(x, gradient_layouts(normal(2, 42, 10, 5, seed=2).to(DTYPES[dtype]), 21, 5, 5)[layout])


def test_other_layouts_are_converted_and_counted():
    backends.reset_counters()
    x = normal(2, 5, 6, 6).requires_grad_()
    max_pool2d(x, (2, 2), (2, 2), (0, 0)).backward(torch.ones(2, 5, 3, 3, dtype=torch.float64))
    assert backends.counters()["layout.to_channels_last"] == 2


@pytest.mark.parametrize("grad_value", [NAN, INF, -INF])
def test_gradients_that_are_not_finite_reach_the_winner_only(grad_value):
    x = whole(1, 33, 8, 8).float().contiguous(memory_format=torch.channels_last)
    grad_y = torch.ones(1, 33, 4, 4)
    grad_y[0, 5, 1, 2] = grad_value
    own, leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    F.max_pool2d(own, 3, 2, 1).backward(grad_y)
    max_pool2d(leaf, (3, 3), (2, 2), (1, 1)).backward(grad_y)
    torch.testing.assert_close(leaf.grad, own.grad, rtol=0, atol=0, equal_nan=True)
    assert (~leaf.grad.isfinite()).sum() == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_batch(dtype):
    x = torch.empty(0, 5, 9, 9, dtype=DTYPES[dtype]).requires_grad_()
    y = max_pool2d(x, (3, 3), (2, 2), (1, 1))
    assert y.shape == (0, 5, 5, 5)
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_thread_count_and_batch_do_not_matter(dtype):
    x = normal(3, 96, 31, 29).to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    grad_y = normal(3, 96, 16, 15, seed=4).to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)

    def run(x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        y = max_pool2d(leaf, (3, 3), (2, 2), (1, 1))
        return y.detach(), torch.autograd.grad(y, leaf, grad_y)[0]

    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(run(x, grad_y))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    one = run(x[1:2], grad_y[1:2])
    assert all(torch.equal(a[1:2], b) for a, b in zip(results[0], one, strict=True))


@pytest.mark.parametrize("window", ["3x3_s2_p1", "2x2_s2", "3x3_s1_p1"])
def test_gradcheck(window):
    # Distinct values, far apart: finite differences never change which one wins.
    order = torch.randperm(2 * 3 * 7 * 6, generator=torch.Generator().manual_seed(0))
    x = order.double().view(2, 3, 7, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: max_pool2d(x, *WINDOWS[window]), (x,))


def test_the_input_may_change_afterwards():
    """Only the taps are kept for the backward pass."""
    x = normal(1, 4, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    middle = x * 1
    y = max_pool2d(middle, (2, 2), (2, 2), (0, 0))
    expected = torch.autograd.grad(F.max_pool2d(x, 2), x, torch.ones_like(y))[0]
    middle.mul_(2)
    assert torch.equal(torch.autograd.grad(y, x, torch.ones_like(y))[0], expected)


def test_double_backward_says_what_to_do():
    x = normal(1, 4, 6, 6).requires_grad_()
    (grad,) = torch.autograd.grad(max_pool2d(x, (2, 2), (2, 2), (0, 0)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="use_backend"):
        grad.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", ["3x3_s2_p1", "5x3_s1x2_p2x1"])
def test_opcheck(window, layout):
    forward = torch.ops.inception_kernels.max_pool2d_training.default
    x = normal(2, 5, 9, 8).float().contiguous(memory_format=LAYOUTS[layout])
    torch.library.opcheck(torch.ops.inception_kernels.max_pool2d.default, (x, *WINDOWS[window]))
    for leaf in (x, x.clone(memory_format=torch.preserve_format).requires_grad_()):
        torch.library.opcheck(forward, (leaf, *WINDOWS[window]))
    y, taps = forward(x, *WINDOWS[window])
    backward = torch.ops.inception_kernels.max_pool2d_backward.default
    torch.library.opcheck(backward, (y, taps, 9, 8, *WINDOWS[window]))


def test_compiles_in_one_graph():
    x = normal(2, 16, 9, 9).float().contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(max_pool2d, fullgraph=True)
    own, leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    F.max_pool2d(own, 3, 2).square().sum().backward()
    backends.reset_counters()
    compiled(leaf, (3, 3), (2, 2), (0, 0)).square().sum().backward()
    assert any(name.startswith("max_pool2d.backward.cpu") for name in backends.counters())
    torch.testing.assert_close(leaf.grad, own.grad)


BAD = {
    "three_dimensions": (dict(x=torch.zeros(3, 8, 8)), r"x: expected \[N, C, H, W\]"),
    "integers": (dict(x=torch.zeros(1, 3, 8, 8, dtype=torch.int64)), "x: expected float32"),
    "no_channels": (dict(x=torch.zeros(1, 0, 8, 8)), "C, H and W of at least 1"),
    "no_window": (dict(kernel=(0, 3)), r"kernel: .* got \[0, 3\]"),
    "huge_window": (dict(kernel=(2**40, 2**40)), r"below 2\^31"),
    "window_beyond_the_image": (dict(x=torch.zeros(1, 1, 2, 8)), "no larger than the padded input"),
    "no_stride": (dict(stride=(0, 1)), r"stride: expected two integers >= 1, got \[0, 1\]"),
    "negative_padding": (dict(padding=(-1, 0)), "padding"),
    "too_much_padding": (dict(padding=(0, 2)), r"padding: expected 0 to half of the window \[3, 3\], got \[0, 2\]"),
}


@pytest.mark.parametrize("operator", ["max_pool2d", "max_pool2d_training"])
@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case, operator):
    changed, message = BAD[case]
    given = {"x": torch.zeros(1, 3, 8, 8), "kernel": (3, 3), "stride": (2, 2), "padding": (0, 0), **changed}
    backends.reset_counters()
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.inception_kernels, operator)(**given)
    assert not backends.counters()


def test_large_windows_where_no_gradient_is_wanted():
    x = normal(1, 3, 40, 40).contiguous(memory_format=torch.channels_last)
    assert torch.equal(max_pool2d(x, (16, 17), (2, 2), (0, 0)), F.max_pool2d(x, (16, 17), 2))
    backends.reset_counters()
    for kernel in ((16, 17), (2**20, 2**20)):
        with pytest.raises(RuntimeError, match=r"of 1 to 256 pixels|larger than the padded input"):
            max_pool2d(x.requires_grad_(), kernel, (2, 2), (0, 0))
    assert not backends.counters()


@pytest.mark.parametrize(
    "changed",
    [
        dict(grad_y=torch.zeros(1, 3, 3, 4)),
        dict(grad_y=torch.zeros(3, 3, 3)),
        dict(taps=torch.zeros(1, 3, 3, 3)),
        dict(taps=torch.zeros(1, 2, 3, 3, dtype=torch.uint8)),
        dict(taps=torch.zeros(3, 3, 3, dtype=torch.uint8)),
        dict(H=9),
        dict(W=0),
        dict(kernel=(5, 3)),
        dict(stride=(1, 2)),
        dict(padding=(1, 2)),
    ],
    ids=lambda changed: "_".join(changed),
)
def test_direct_calls_of_the_gradient_are_guarded(changed):
    given = {
        "grad_y": torch.zeros(1, 3, 3, 3), "taps": torch.zeros(1, 3, 3, 3, dtype=torch.uint8), "H": 7, "W": 7,
        "kernel": (3, 3), "stride": (2, 2), "padding": (0, 0), **changed,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="expected"):
        torch.ops.inception_kernels.max_pool2d_backward(**given)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_property_the_bits_of_pytorch(data):
    draw = data.draw
    kernel = (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    stride = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    H = draw(st.integers(max(1, kernel[0] - 2 * padding[0]), 14))
    W = draw(st.integers(max(1, kernel[1] - 2 * padding[1]), 14))
    size = (draw(st.integers(1, 3)), draw(st.integers(1, 70)), H, W)
    seed = draw(st.integers(0, 2**31))
    values = draw(st.sampled_from([whole, normal]))(*size, seed=seed)
    if draw(st.booleans()):
        values = with_specials(values, seed)
    dtype = DTYPES[draw(st.sampled_from(list(DTYPES)))]
    check(values.to(dtype).contiguous(memory_format=LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))]),
          window=(kernel, stride, padding))  # fmt: skip
