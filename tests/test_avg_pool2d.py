"""Average pools: PyTorch's bits, and a gradient that is an average pool too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import GRADIENT_LAYOUTS, assert_as_accurate, gradient_layouts, needs_kernels, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from inception_kernels import backends
from inception_kernels.ops.avg_pool2d import avg_pool2d

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_kernels]

DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
KERNELS = [(3, 3), (1, 1), (5, 3), (1, 7), (9, 9)]
SIZES = [(1, 1, 7, 7), (2, 33, 17, 13), (1, 64, 8, 9), (3, 5, 1, 11), (2, 4, 2, 2), (1, 545, 5, 6)]


def torchs(x: Tensor, kernel, count_include_pad: bool) -> Tensor:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return F.avg_pool2d(x, kernel, 1, padding, count_include_pad=count_include_pad)


def check(x: Tensor, kernel, count_include_pad: bool, grad_y: Tensor | None = None) -> None:
    leaf, own, exact = x.detach().requires_grad_(), x.detach().requires_grad_(), x.double().requires_grad_()
    y, expected = avg_pool2d(leaf, kernel, count_include_pad), torchs(own, kernel, count_include_pad)
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    grad_y = normal(*y.shape, seed=5).to(x.dtype) if grad_y is None else grad_y
    y.backward(grad_y)
    expected.backward(grad_y)
    torchs(exact, kernel, count_include_pad).backward(grad_y.double())
    assert_as_accurate(leaf.grad, own.grad, exact.grad, "grad_x")


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_core_geometry(size, kernel, dtype, count_include_pad):
    if kernel[0] == 9 and min(size[2:]) == 1:
        kernel = (1, 9)
    x = normal(*size).to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    check(x, kernel, count_include_pad)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [1, 15, 67, 128])
def test_special_values_on_every_instruction_set(C, dtype, isa, use_isa):
    use_isa(isa)
    x = normal(2, C, 8, 9)
    special = x.new_tensor([torch.nan, -torch.nan, torch.inf, -torch.inf, -0.0, 3e38, -3e38, 1e-45])
    where = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.05
    x[where] = special[torch.arange(int(where.sum())) % len(special)]
    x = x.to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    for kernel in ((3, 3), (3, 5)):
        y, expected = avg_pool2d(x, kernel), torchs(x, kernel, True)
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", GRADIENT_LAYOUTS)
def test_gradients_of_any_layout(layout, dtype, count_include_pad):
    x = normal(2, 21, 5, 5).to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    grad_y = gradient_layouts(normal(2, 42, 10, 5, seed=2).to(DTYPES[dtype]), 21, 5, 5)[layout]
    check(x, (3, 3), count_include_pad, grad_y)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_a_16_bit_gradient_is_rounded_once(dtype, count_include_pad):
    grad_y = normal(1, 40, 9, 9).to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    x, exact = grad_y.clone().requires_grad_(), grad_y.double().requires_grad_()
    avg_pool2d(x, (3, 3), count_include_pad).backward(grad_y)
    torchs(exact, (3, 3), count_include_pad).backward(grad_y.double())
    error = (x.grad.double() - exact.grad).abs()
    # Half a unit in the last place, and what a sum of nine in float32 adds to that.
    half_a_unit = exact.grad.abs() * torch.finfo(x.dtype).eps / 2
    assert (error <= half_a_unit + 1e-6 * exact.grad.abs().max() + torch.finfo(x.dtype).tiny).all()


@pytest.mark.parametrize("count_include_pad", [True, False])
def test_pytorchs_pools_do_not_run(count_include_pad):
    x = normal(1, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    backends.reset_counters()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        avg_pool2d(x, (3, 3), count_include_pad).sum().backward()
    names = {event.key for event in profiled.key_averages()}
    assert not names & {"aten::avg_pool2d", "aten::avg_pool2d_backward"}
    counted = sum(count for name, count in backends.counters().items() if name.startswith("avg_pool2d.forward.cpu_"))
    assert counted == (2 if count_include_pad else 3)


@pytest.mark.parametrize("count_include_pad", [True, False])
def test_gradcheck(count_include_pad):
    x = normal(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: avg_pool2d(x, (3, 5), count_include_pad), (x,))
    assert torch.autograd.gradgradcheck(lambda x: avg_pool2d(x, (3, 5), count_include_pad), (x,))


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_batch_and_thread_count(dtype, count_include_pad):
    x = torch.empty(0, 5, 9, 9, dtype=DTYPES[dtype]).requires_grad_()
    avg_pool2d(x, (3, 3), count_include_pad).sum().backward()
    assert x.grad.shape == x.shape
    x = normal(2, 96, 23, 19).to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last).requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            y = avg_pool2d(x, (3, 3), count_include_pad)
            results.append(torch.autograd.grad(y, x, x.detach())[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [1, 15, 67, 131])
def test_every_instruction_set(C, dtype, isa, use_isa):
    use_isa(isa)
    x = normal(2, C, 9, 7).to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    backends.reset_counters()
    check(x, (3, 5), True)
    assert backends.counters().get(f"avg_pool2d.forward.cpu_{isa}_{dtype}") == 2


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize(
    "window", [((2, 3), (2, 1), (1, 0)), ((5, 5), (3, 3), (0, 0)), ((4, 4), (1, 2), (2, 2))], ids=str
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_the_operator_takes_any_window(layout, window, count_include_pad):
    x = normal(2, 21, 11, 10).contiguous(memory_format=layout)
    operator = torch.ops.inception_kernels.avg_pool2d.default
    y = operator(x, *window, count_include_pad)
    assert torch.equal(y, F.avg_pool2d(x, *window, count_include_pad=count_include_pad))
    torch.library.opcheck(operator, (x, *window, count_include_pad))


BAD = {
    "three_dimensions": (dict(x=torch.zeros(3, 8, 8)), r"x: expected \[N, C, H, W\]"),
    "integers": (dict(x=torch.zeros(1, 3, 8, 8, dtype=torch.int64)), "x: expected float32"),
    "no_channels": (dict(x=torch.zeros(1, 0, 8, 8)), "C, H and W of at least 1"),
    "no_window": (dict(kernel=(0, 3)), r"kernel: .* got \[0, 3\]"),
    "window_beyond_the_image": (dict(x=torch.zeros(1, 1, 2, 8)), "no larger than the padded input"),
    "window_of_more_than_an_integer": (
        dict(kernel=(2**32, 2**32), padding=(2**31, 2**31)),
        r"expected kernel, stride and padding below 2\^31, got \[4294967296, 4294967296\]",
    ),
    "huge_stride": (dict(stride=(1, 2**31)), r"below 2\^31, got \[3, 3\], \[1, 2147483648\] and \[0, 0\]"),
    "no_stride": (dict(stride=(0, 1)), r"stride: expected two integers >= 1, got \[0, 1\]"),
    "too_much_padding": (dict(padding=(0, 2)), r"padding: expected 0 to half of the window \[3, 3\], got \[0, 2\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    changed, message = BAD[case]
    given = {"x": torch.zeros(1, 3, 8, 8), "kernel": (3, 3), "stride": (1, 1), "padding": (0, 0), **changed}
    backends.reset_counters()
    with pytest.raises(RuntimeError, match=message):
        torch.ops.inception_kernels.avg_pool2d(**given, count_include_pad=True)
    assert not backends.counters()


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 13), st.integers(1, 13)),
    halves=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dtype=st.sampled_from(list(DTYPES)),
    count_include_pad=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_property_as_accurate_as_pytorch(size, halves, dtype, count_include_pad, seed):
    x = normal(*size, seed=seed).to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    kernel = tuple(2 * min(half, n // 2) + 1 for half, n in zip(halves, size[2:], strict=True))
    check(x, kernel, count_include_pad)
