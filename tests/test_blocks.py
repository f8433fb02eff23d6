"""The papers' modules: fused as in plain PyTorch, forward and backward, at the cost that the papers claim."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from helpers import needs_kernels
from oracle import assert_as_accurate_as_torch
from torch import Tensor, nn

from inception_kernels import _extension, backends
from inception_kernels.flops import count
from inception_kernels.models.factorization import AsymmetricPair, SmallWindows, TwoByTwo
from inception_kernels.models.inception_blocks import (
    AuxiliaryClassifier,
    ExpandThenPool,
    GridReduction,
    InceptionA,
    InceptionB,
    InceptionC,
    InceptionOriginal,
    PoolThenExpand,
)
from inception_kernels.models.xception_blocks import ExtremeInception, SegmentedConv2d, SimplifiedInception

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
C = 12  # input channels of every block below

BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "two_3x3": lambda: SmallWindows(C, 16),
    "two_3x3_linear": lambda: SmallWindows(C, 16, mid_activation="none"),
    "three_3x3_strided": lambda: SmallWindows(C, 16, 7, mid_channels=10, stride=2),
    "two_2x2": lambda: TwoByTwo(C, 16),
    "asymmetric": lambda: AsymmetricPair(C, 10, 16, 7),
    "asymmetric_reversed": lambda: AsymmetricPair(C, 10, 16, 3, order="nx1_1xn"),
    "inception_original": lambda: InceptionOriginal(C, 8, (6, 10), (4, 8), 6),
    "inception_a": lambda: InceptionA(C, 8, (6, 10), (6, 8, 12), 6),
    "inception_a_linear": lambda: InceptionA(C, 8, (6, 10), (6, 8, 12), 6, mid_activation="none"),
    "inception_b": lambda: InceptionB(C, 7, 10, 12),
    "inception_b_n3": lambda: InceptionB(C, 3, 10, 12),
    "inception_c": lambda: InceptionC(C, 10, (8, 6), (8, 10, 6), 6),
    "grid_reduction": lambda: GridReduction(C, (8, 12), (6, 8, 10)),
    "pool_then_expand": lambda: PoolThenExpand(C, 2 * C),
    "expand_then_pool": lambda: ExpandThenPool(C, 2 * C),
    "auxiliary": lambda: AuxiliaryClassifier(C, 7, (8, 16), window=2),
    "towers": lambda: SimplifiedInception(C, 18, 3, mid_activation="elu"),
    "extreme": lambda: ExtremeInception(C, 16, mid_activation="elu"),
    **{
        f"{order}_{segments}_{mid}": lambda order=order, segments=segments, mid=mid: SegmentedConv2d(
            C, 12, segments, order=order, mid_activation=mid, activation="relu"
        )
        for order in ("pointwise_first", "spatial_first")
        for segments, mid in ((1, "none"), (3, "elu"), (12, "none"), (12, "elu"))
    },
}


def build(name: str) -> nn.Module:
    """The block with pre-activations away from the kink of ReLU, where a rounding error decides about a gradient."""
    torch.manual_seed(len(name))
    block = BLOCKS[name]()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.4)
            with torch.no_grad():
                module.bias.copy_(torch.where(torch.rand_like(module.bias) < 0.3, -2.5, 2.5))
            module.momentum = 1.0
    block.train()(image())  # running statistics are those of this image
    return block


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(3, C, 11, 13, generator=torch.Generator().manual_seed(7))
    return x.to(torch.bfloat16).to(dtype)


def results(block: nn.Module, x: Tensor, backend: str) -> dict[str, Tensor]:
    """Output, all gradients and the buffers after one forward and backward pass of a copy."""
    block = copy.deepcopy(block).to(x.dtype)
    leaf = x.detach().requires_grad_()
    with backends.use_backend(backend):
        y = block(leaf)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(torch.bfloat16).to(y.dtype)
        y.backward(grad)
    found = {"output": y.detach(), "gradient of the input": leaf.grad}
    found |= {f"gradient of {name}": parameter.grad for name, parameter in block.named_parameters()}
    return found | {name: b for name, b in block.named_buffers() if b.is_floating_point()}


@needs_kernels
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BLOCKS)
def test_fused_is_as_accurate_as_pytorch(name, dtype, mode):
    block, x = build(name).train(mode == "train").to(DTYPES[dtype]), image(DTYPES[dtype])
    channels_last = x.to(memory_format=torch.channels_last)
    exact = results(block, x.double(), "reference")
    torchs = [results(block, each, "reference") for each in (x, channels_last)]
    ours = results(block, channels_last, "cpu")
    for key, true in exact.items():
        assert_as_accurate_as_torch(ours[key], true, [each[key] for each in torchs], name=key)


@needs_kernels
@pytest.mark.parametrize("name", BLOCKS)
def test_the_fused_kernels_run(name):
    block = build(name)
    backends.reset_counters()
    block(image().to(memory_format=torch.channels_last)).sum().backward()
    counts = backends.counters()
    for direction in ("forward", "backward"):
        assert any(f".{direction}.cpu" in counter for counter in counts), counts
    assert not any(counter.endswith(".reference") for counter in counts), counts


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("mid_activation", ["none", "relu", "elu"])
@pytest.mark.parametrize("towers", [1, 3, 6])
@pytest.mark.parametrize("backend", ["cpu", "reference"] if _extension.available else ["reference"])
def test_figures_2_and_3_are_the_same_function(backend, towers, mid_activation, dtype):
    """Xception, section 1.1: towers side by side are one large 1 x 1 and convolutions within segments of its output."""
    torch.manual_seed(0)
    dtype = {"f32": torch.float32, "f64": torch.float64}[dtype]
    block = SimplifiedInception(C, 18, towers, mid_activation=mid_activation, activation="relu").to(dtype)
    merged = block.as_segments()
    x = image(dtype)
    with backends.use_backend(backend):
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [block(leaves[0]), merged(leaves[1])]
        for y in outputs:
            y.square().sum().backward()
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    for part in ("pointwise", "spatial"):
        grads = torch.cat([getattr(tower, part).weight.grad for tower in block.towers])
        torch.testing.assert_close(grads, getattr(merged, part).weight.grad)
    assert sum(p.numel() for p in merged.parameters()) == sum(p.numel() for p in block.parameters())


def test_the_extreme_module_is_one_tower_per_channel():
    """Section 1.2, figure 4."""
    torch.manual_seed(0)
    towers = SimplifiedInception(C, 16, 16, mid_activation="relu")
    extreme = ExtremeInception(C, 16, batch_norm=False)
    extreme.load_state_dict(towers.as_segments().state_dict())
    torch.testing.assert_close(extreme(image()), towers(image()))


def test_both_orders_compute_what_they_say():
    torch.manual_seed(0)
    x = image()
    for order in ("pointwise_first", "spatial_first"):
        block = SegmentedConv2d(C, 16, 4, stride=2, order=order, mid_activation="relu", batch_norm=False)
        parts = [block.pointwise, block.spatial]
        one, two = parts if order == "pointwise_first" else parts[::-1]
        torch.testing.assert_close(block(x), two(one(x).relu()))


BAD = {
    "even_stack": lambda: SmallWindows(C, 8, 4),
    "tiny_stack": lambda: SmallWindows(C, 8, 1),
    "even_asymmetric": lambda: InceptionB(C, n=4),
    "segments": lambda: SegmentedConv2d(C, 16, 3),
    "segments_spatial": lambda: SegmentedConv2d(C, 16, 16, order="spatial_first"),
    "no_segments": lambda: SegmentedConv2d(C, 16, 0),
    "order": lambda: SegmentedConv2d(C, 16, 1, order="depthwise_first"),
    "even_window": lambda: SegmentedConv2d(C, 16, 1, 4),
    "towers": lambda: SimplifiedInception(C, 16, 3),
}


@pytest.mark.parametrize("name", BAD)
def test_impossible_blocks_say_what_they_expect(name):
    with pytest.raises(ValueError, match="expected"):
        BAD[name]()


# ---- multiply-adds


def macs(block: nn.Module, device: str = "meta", size: tuple[int, int] = (17, 17)) -> int:
    channels = next(m for m in block.modules() if isinstance(m, nn.Conv2d)).in_channels
    block = block.to(device)
    return count(block, torch.empty(1, channels, *size, device=device).fill_(0.5)).macs


def regular(channels: int, n: int) -> int:
    """Multiply-adds of an n x n convolution that keeps channels and size, on the grid of `macs`."""
    return 17 * 17 * channels * channels * n * n


@pytest.mark.parametrize(
    ("block", "n", "ratio"),
    [
        (lambda: SmallWindows(8, 8, 5), 5, Fraction(18, 25)),  # section 3.1: "a relative gain of 28 %"
        (lambda: SmallWindows(8, 8, 7), 7, Fraction(27, 49)),
        (lambda: TwoByTwo(8, 8), 3, None),  # section 3.2: 11 %, but for the border of the first factor
        (lambda: AsymmetricPair(8, 8, 8, 3), 3, Fraction(2, 3)),  # section 3.2: "33 % cheaper"
        (lambda: AsymmetricPair(8, 8, 8, 7), 7, Fraction(2, 7)),
    ],
    ids=["5x5", "7x7", "2x2", "1x3_3x1", "1x7_7x1"],
)
def test_factorized_windows_cost_what_the_paper_says(block, n, ratio):
    if ratio is None:
        assert macs(block()) == 8 * 8 * 4 * (18 * 18 + 17 * 17)
    else:
        assert macs(block()) == ratio * regular(8, n)


def test_reductions_cost_what_section_5_says():
    """2 d^2 k^2 against 2 (d / 2)^2 k^2, with d = 16 and a window of 1 x 1; the pools here leave 7 x 7."""
    k = 8
    assert macs(ExpandThenPool(k, 2 * k, 1), size=(16, 16)) == 2 * 16**2 * k**2
    assert macs(PoolThenExpand(k, 2 * k, 1), size=(16, 16)) == 2 * 7**2 * k**2


def test_inception_modules_cost_the_sum_of_their_branches():
    pixels = 17 * 17
    expected = {
        "inception_original": C * (8 + 6 + 4 + 6) + 9 * 6 * 10 + 25 * 4 * 8,
        "inception_a": C * (8 + 6 + 6 + 6) + 9 * (6 * 10 + 6 * 8 + 8 * 12),
        "inception_b": C * (12 + 10 + 10 + 12) + 7 * (10 * 10 + 10 * 12 + 3 * 10 * 10 + 10 * 12),
        "inception_c": C * (10 + 8 + 8 + 6) + 2 * 3 * 8 * 6 + 9 * 8 * 10 + 2 * 3 * 10 * 6,
    }
    for name, per_pixel in expected.items():
        assert macs(BLOCKS[name]()) == pixels * per_pixel, name
    reduced = 8 * 8
    assert macs(BLOCKS["grid_reduction"]()) == (pixels * (C * 8 + C * 6 + 9 * 6 * 8) + reduced * 9 * (8 * 12 + 8 * 10))
    assert macs(BLOCKS["auxiliary"]()) == 5 * 5 * C * 8 + 4 * 4 * 8 * 16 * 4 + 16 * 7


@pytest.mark.parametrize("order", ["pointwise_first", "spatial_first"])
def test_the_spectrum_from_regular_to_depthwise(order):
    """k x k within s segments costs 1 / s of a regular one; the 1 x 1 stays."""
    pixels, K = 17 * 17, 12
    costs = [macs(SegmentedConv2d(C, K, s, order=order)) for s in (1, 2, 3, 4, 6, 12)]
    assert costs == [pixels * (C * K + 9 * K * K // s) for s in (1, 2, 3, 4, 6, 12)]


@needs_kernels
@pytest.mark.parametrize("name", BLOCKS)
def test_fused_operators_count_as_many_multiply_adds(name):
    block = BLOCKS[name]()
    fused = macs(copy.deepcopy(block), "cpu")
    assert fused == macs(block)


@pytest.mark.parametrize(
    "block", [InceptionOriginal, InceptionA, InceptionB, InceptionC, GridReduction], ids=lambda b: b.__name__
)
def test_default_widths_and_out_channels(block):
    with torch.device("meta"):
        module = block(288)
        y = module(torch.empty(1, 288, 17, 17))
    assert y.shape[1] == module.out_channels
    assert {"InceptionA": 288, "InceptionB": 768, "InceptionC": 2048}.get(block.__name__, y.shape[1]) == y.shape[1]
