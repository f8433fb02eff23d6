"""The pointer kernel with tiles and splits that predictions would not choose for small shapes."""

import pytest
import torch
from forcing import forced
from operator_cases import check, conv_case

from inception_kernels.triton._convolution import Blocks

pytestmark = pytest.mark.usefixtures("poisoned_memory")

BLOCKS = {
    "whole": Blocks(64, 32, 16, 4, 2, flat=False),
    "split": Blocks(64, 32, 16, 4, 2, flat=False, splits=2),
    "split_unevenly": Blocks(64, 16, 16, 4, 2, flat=False, splits=7),
    "flat": Blocks(64, 32, 16, 4, 2, flat=True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_tiles(blocks: str, training: bool, dtype: torch.dtype) -> None:
    case = conv_case(
        N=2, C=21, H=9, W=7, K=37, window=(3, 2), stride=(2, 1), padding=(1, 1), dilation=(1, 2), residual=True,
        bias=True, dtype=dtype, training=training, seed=4,
    )  # fmt: skip
    with forced(convolution=BLOCKS[blocks]):
        check(case, "triton")


def test_pixels_that_no_output_reads_have_no_gradient() -> None:
    check(conv_case(N=2, C=8, H=8, W=9, K=16, window=(1, 1), stride=3), "triton")
