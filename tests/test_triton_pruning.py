"""What was seen to spill is no candidate, and its neighbours, which do not, are."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no build for this platform")

from inception_kernels.triton import (
    _convolution,
    _convolution_descriptor,
    _depthwise,
    _depthwise_rows_gradient,
    _separable_patches,
    _weight_gradient,
)
from inception_kernels.triton._separable_patches import Patches
from tools.triton_gates.capture import DEVICES, compiling_for

BF16, F32 = torch.bfloat16, torch.float32


def patches(
    arch: str, K: int, moments: bool, N: int = 256, C: int = 128, window: int = 3, dtype: torch.dtype = BF16
) -> list[Patches]:
    """Of a layer of C -> K channels and 74 x 74 pixels."""
    x = torch.empty(N, C, 74, 74, device="meta", dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.empty(C, 1, window, window, device="meta", dtype=dtype)
    padding = (window // 2, window // 2)
    with compiling_for(arch):
        d = _depthwise.prepare(x, weight, None, (1, 1), padding, (1, 1), "none", "none")
        return _separable_patches.configurations(C, K, d, moments)


@pytest.mark.parametrize("arch", DEVICES)
def test_patches_ahead_take_moments_where_registers_hold_both(arch: str) -> None:
    assert {each.ahead for each in patches(arch, 128, moments=False)} == {True, False}
    assert {each.ahead for each in patches(arch, 256, moments=False)} == {True, False}
    assert not any(each.ahead for each in patches(arch, 256, moments=True))
    ahead = [each.warps for each in patches(arch, 128, moments=True) if each.ahead]
    assert ahead == ([] if arch == "100" else [8])


@pytest.mark.parametrize("arch", DEVICES)
def test_patches_of_many_images_that_take_moments(arch: str) -> None:
    def for_one_tile(N: int, moments: bool) -> list[Patches]:
        return [each for each in patches(arch, 128, moments, N) if not each.ahead]

    assert {each.images for each in for_one_tile(256, moments=False)} == {8}
    assert {each.images for each in for_one_tile(1, moments=True)} == {1}
    assert 8 not in {each.images for each in for_one_tile(256, moments=True)}


def test_patches_that_registers_do_not_hold() -> None:
    assert all(each.warps == 8 for each in patches("90", 256, moments=False))
    assert {each.warps for each in patches("90", 128, moments=False, C=32)} == {4}
    assert not patches("90", 257, moments=False)
    assert not patches("90", 128, moments=False, dtype=F32)
    assert [each for each in patches("90", 128, moments=False, window=5) if (each.height, each.width) == (2, 2)]
    assert not patches("90", 128, moments=False, window=7), "64 input pixels for four outputs"


@pytest.mark.parametrize(("N", "by_images"), [(1, False), (7, False), (8, True), (9, False), (100, True), (256, True)])
def test_patches_lie_where_fewest_are_empty(N: int, by_images: bool) -> None:
    found = patches("90", 128, moments=False, N=N)
    assert {each.images > 1 for each in found} == {by_images}
    assert {each.images * each.down * each.across for each in found} == {8}


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("dtype", [BF16, F32], ids=["bf16", "f32"])
def test_tiles_of_the_weight_gradient(arch: str, dtype: torch.dtype) -> None:
    tiles = {(each.k, each.c) for each in _weight_gradient.configurations(256, 256, 9, 1000, dtype, DEVICES[arch])}
    assert ((64, 64) in tiles) == (dtype == BF16 or arch != "80")
    assert ((128, 128) in tiles) == (dtype == BF16)
    assert ((128, 256) in tiles) == ((128, 64) in tiles) == (dtype == BF16 and arch != "80")
    assert (64, 32) in tiles


def test_strips_of_the_depthwise_gradient() -> None:
    def widths(N: int, window: int) -> set[int]:
        return {each.columns for each in _depthwise_rows_gradient.configurations(N, window, window)}

    assert widths(256, 3) == {2, 4}
    assert widths(1, 3) == widths(256, 5) == {2}


@pytest.mark.parametrize("arch", ["90", "100"])
@pytest.mark.parametrize("moments", [False, True], ids=["plain", "moments"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_boxes(arch: str, moments: bool, residual: bool) -> None:
    found = _convolution_descriptor.configurations(256, 17, 17, 256, 192, 7, moments, DEVICES[arch], residual)
    blackwell = arch == "100"
    sizes = {(each.k0, each.k1, each.warps) for each in found if each.m == 128}
    assert (128, 0, 8) in sizes
    assert ((256, 0, 8) in sizes) == (not (moments or residual or blackwell))
    assert ((128, 64, 8) in sizes) == (not blackwell)
    assert ((128, 0, 4) in sizes) == (not (moments or blackwell))


def tiles(arch: str, dtype: torch.dtype, precision: str, moments: bool, residual: bool) -> set[tuple[int, int, int]]:
    """Of the pointers' kernel, not split: 128 -> 192 channels, 3 x 3."""
    device = DEVICES[arch]
    found = _convolution.configurations(4096, 192, 128, 9, dtype, precision, moments, residual, device)
    return {(each.m, each.k, each.c) for each in found if each.splits == 1}


def test_tiles_that_spill_in_the_pointers_kernel() -> None:
    assert (64, 64, 64) in tiles("80", BF16, "ieee", False, False)
    assert (64, 64, 64) not in tiles("80", BF16, "ieee", True, False)
    assert (64, 64, 64) in tiles("90", BF16, "ieee", True, False)
    assert (128, 64, 64) in tiles("100", BF16, "ieee", False, False)
    assert (128, 64, 64) not in tiles("100", BF16, "ieee", True, False) | tiles("100", BF16, "ieee", False, True)
    assert (64, 32, 32) in tiles("90", F32, "tf32", False, False)
    assert (64, 32, 32) not in tiles("100", F32, "tf32", False, False)
