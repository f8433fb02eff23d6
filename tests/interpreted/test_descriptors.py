"""The descriptor kernel on the shapes that it takes: every kind of tile, joined dimensions, slices, statistics."""

import math
from unittest import mock

import pytest
import torch
from forcing import forced
from operator_cases import check, conv_case, in_layout

from inception_kernels.triton import _convolution_descriptor as descriptor
from inception_kernels.triton import conv2d_bn_act
from inception_kernels.triton._convolution_descriptor import Boxes
from inception_kernels.triton.runtime import Device

pytestmark = pytest.mark.usefixtures("poisoned_memory")

BF16, F16 = torch.bfloat16, torch.float16
CASES = {
    "3x3": dict(N=2, C=24, H=9, W=7, K=40, window=(3, 3), padding=1),
    "1x7": dict(N=3, C=16, H=5, W=9, K=24, window=(1, 7), padding=(0, 3)),
    "7x1": dict(N=3, C=16, H=9, W=5, K=24, window=(7, 1), padding=(3, 0)),
    "1x1": dict(N=3, C=72, H=5, W=7, K=16, window=(1, 1)),
    "5x5": dict(N=1, C=8, H=7, W=8, K=8, window=(5, 5), padding=2),
    "valid": dict(N=2, C=40, H=6, W=7, K=32, window=(3, 2)),
    "dilated": dict(N=2, C=8, H=9, W=8, K=16, window=(3, 3), padding=2, dilation=2),
    "padding_beyond_window": dict(N=2, C=8, H=4, W=5, K=8, window=(3, 3), padding=4),
    "one_pixel": dict(N=5, C=16, H=1, W=1, K=24, window=(3, 3), padding=1),
    "192_outputs": dict(N=2, C=16, H=4, W=5, K=192, window=(1, 3), padding=(0, 1)),
}


def took_the_descriptors(case, **options) -> None:
    with mock.patch.object(conv2d_bn_act, "convolve_boxes", wraps=descriptor.convolve_boxes) as spy:
        check(case, "triton", **options)
    assert spy.call_count >= 2, "expected the forward pass and the input's gradient by descriptors"


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_windows(name: str, training: bool) -> None:
    index = list(CASES).index(name)
    case = conv_case(
        **CASES[name], bias=True, residual=index % 2 == 0, dtype=(BF16, F16)[index % 3 == 0], training=training,
        activation=("relu", "silu", "none")[index % 3], seed=index,
    )  # fmt: skip
    took_the_descriptors(case.but(x=in_layout(case.tensors["x"], "channels_last")))


TILES = {
    "images": Boxes(64, 1, 1, 32, 0, 16, 4, 2),
    "patch": Boxes(1, 8, 8, 32, 0, 16, 4, 2),
    "row_patch": Boxes(1, 1, 64, 32, 0, 32, 4, 2),
    "two_accumulators": Boxes(64, 1, 1, 32, 16, 16, 4, 2),
    "split_images": Boxes(64, 1, 1, 32, 0, 16, 4, 2, splits=4),
    "split_patch": Boxes(1, 2, 32, 32, 0, 32, 4, 2, splits=2),
    "split_unevenly": Boxes(1, 8, 8, 64, 0, 16, 4, 2, splits=7),  # 18 steps in 6 pieces
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("tile", TILES)
def test_every_kind_of_tile(tile: str, training: bool) -> None:
    case = conv_case(
        N=2, C=24, H=3, W=5, K=40, window=(3, 3), padding=1, residual=True, dtype=BF16, training=training, seed=1
    )
    case = case.but(x=in_layout(case.tensors["x"], "channels_last"))
    with forced(convolution_descriptor=TILES[tile]):
        took_the_descriptors(case)


@pytest.mark.parametrize("window", [(1, 1), (1, 3)], ids=["1x1", "1x3"])
def test_slices_keep_dimensions_apart_or_join_them(window: tuple[int, int]) -> None:
    """Slices of channels join rows; slices of pixels and residuals that differ from x do not."""
    padding = (0, window[1] // 2)
    case = conv_case(N=2, C=16, H=5, W=6, K=24, window=window, padding=padding, residual=True, dtype=BF16)
    wide = torch.full((2, 16 + 8, 5, 6), float("nan"), dtype=BF16).to(memory_format=torch.channels_last)
    sliced = wide[:, 8:].copy_(case.tensors["x"])
    took_the_descriptors(case.but(x=sliced))
    wide = torch.full((2, 16, 8, 9), float("nan"), dtype=BF16).to(memory_format=torch.channels_last)
    sliced = wide[:, :, 2:7, 1:7].copy_(case.tensors["x"])
    took_the_descriptors(case.but(x=sliced))


def test_what_descriptors_cannot_read_says_why() -> None:
    x = torch.zeros(2, 16, 5, 5, dtype=BF16).to(memory_format=torch.channels_last)
    assert descriptor.unsupported(x, None, 24, (1, 1)) is None
    assert "stride" in str(descriptor.unsupported(x, None, 24, (2, 1)))
    assert "16-bit" in str(descriptor.unsupported(x.float(), None, 24, (1, 1)))
    assert "16 bytes" in str(descriptor.unsupported(x, None, 20, (1, 1)))
    assert "16 bytes" in str(descriptor.unsupported(x[:, :12], None, 24, (1, 1)))
    assert "aligned" in str(descriptor.unsupported(x[:, 4:12], None, 24, (1, 1)))
    assert "expanded" in str(descriptor.unsupported(x, x[:1].expand(2, -1, -1, -1), 16, (1, 1)))


HOPPER = Device((9, 0), 132, 232448)
SHAPES = [  # of both networks at batch 1, 8 and 256: (P, Q, C, K)
    (17, 17, 128, 128), (17, 17, 160, 192), (17, 17, 768, 192), (35, 35, 64, 96), (8, 8, 384, 384), (8, 8, 1280, 320),
    (147, 147, 32, 64), (19, 19, 728, 728), (10, 10, 1536, 2048), (1, 1, 16, 8),
]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 8, 256])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_configurations_are_pruned_but_never_empty(shape: tuple[int, ...], batch: int) -> None:
    P, Q, C, K = shape
    found = descriptor.configurations(batch, P, Q, C, K, 9, False, HOPPER)
    assert found
    for boxes in found:
        assert boxes.splits == 1 or math.prod(boxes.tiles(batch, P, Q, K)) * boxes.splits <= 2 * HOPPER.multiprocessors
        assert boxes.stages * (boxes.m + boxes.k0 + boxes.k1) * boxes.c * 2 <= 232448
        assert (boxes.m, boxes.c, boxes.k0) == tuple(1 << (n.bit_length() - 1) for n in (boxes.m, boxes.c, boxes.k0))
