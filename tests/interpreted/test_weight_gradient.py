"""The gradient of a dense weight, by descriptors and by pointers: several tiles, several pieces, ragged in every way."""

from unittest import mock

import pytest
import torch
from forcing import forced
from operator_cases import check, conv_case, in_layout

from inception_kernels.triton import _weight_gradient as gradient
from inception_kernels.triton._weight_gradient import Tile

pytestmark = pytest.mark.usefixtures("poisoned_memory")

BF16, F16 = torch.bfloat16, torch.float16
BY_DESCRIPTORS = {  # at least 64 images, once the dimensions that no tap crosses are joined
    "1x1": dict(N=3, C=40, H=5, W=7, K=24, window=(1, 1)),
    "1x7": dict(N=9, C=16, H=8, W=6, K=40, window=(1, 7), padding=(0, 3)),
    "3x3": dict(N=67, C=8, H=3, W=2, K=16, window=(3, 3), padding=1),
    "dilated": dict(N=65, C=8, H=4, W=3, K=8, window=(2, 1), padding=(2, 0), dilation=2),
}
BY_POINTERS = {
    "few_images": dict(N=2, C=24, H=5, W=9, K=40, window=(3, 3), padding=1),
    "stride": dict(N=3, C=20, H=9, W=7, K=19, window=(3, 2), stride=(2, 3), padding=1),
    "one_column": dict(N=5, C=8, H=11, W=1, K=8, window=(3, 1), padding=(1, 0)),
    "one_pixel": dict(N=70, C=9, H=1, W=1, K=17, window=(1, 1)),
}
TILES = {
    "one_piece": Tile(32, 16, 64, 4, 2, splits=1),
    "pieces": Tile(16, 16, 64, 4, 2, splits=3),
    "more_pieces_than_steps": Tile(64, 32, 16, 4, 2, splits=64),
}


@pytest.mark.parametrize("tile", ["one_piece", "pieces"])
@pytest.mark.parametrize("name", BY_DESCRIPTORS)
def test_by_descriptors(name: str, tile: str) -> None:
    dtype = (BF16, F16)[list(BY_DESCRIPTORS).index(name) % 2]
    case = conv_case(**BY_DESCRIPTORS[name], bias=True, dtype=dtype, training=tile == "pieces", seed=7)
    case = case.but(x=in_layout(case.tensors["x"], "channels_last"))
    with (
        mock.patch.object(gradient, "_by_pointers") as pointers,
        forced(weight_gradient=TILES[tile]),
    ):
        check(case, "triton")
    assert not pointers.called


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", BY_POINTERS)
def test_by_pointers(name: str, tile: str, dtype: torch.dtype) -> None:
    with (
        mock.patch.object(gradient, "_by_pointers", wraps=gradient._by_pointers) as pointers,
        forced(weight_gradient=TILES[tile]),
    ):
        check(conv_case(**BY_POINTERS[name], dtype=dtype, seed=8), "triton")
    assert pointers.called
