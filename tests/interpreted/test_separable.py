"""separable_conv2d's own kernels with configurations that predictions would not choose for small shapes."""

import pytest
import torch
from forcing import forced
from operator_cases import check, in_layout, separable_case

from inception_kernels import backends
from inception_kernels.triton import batch_norm
from inception_kernels.triton._depthwise_rows import Rows
from inception_kernels.triton._separable_patches import Patches
from inception_kernels.triton.separable_conv2d import TwoKernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
CASES = {
    "3x3": dict(N=2, C=24, H=9, W=7, K=40, padding=1, input_activation="relu", residual=True),
    "5x5": dict(N=1, C=9, H=7, W=8, K=8, window=(5, 5), padding=2, mid_activation="silu", depthwise_bias=True),
    "valid": dict(N=3, C=40, H=6, W=5, K=33, window=(3, 2), mid_activation="relu6", bias=True),
    "padding_beyond_window": dict(N=2, C=8, H=4, W=5, K=8, padding=4, activation="elu", depthwise_bias=True),
    "one_pixel": dict(N=5, C=17, H=1, W=1, K=21, padding=1, residual=True),
}
PATCHES = {
    "wide": Patches(2, 4, 8, 64, 16, 4),
    "square": Patches(2, 2, 16, 64, 32, 4),
    "large": Patches(4, 4, 4, 64, 16, 4),
    "ahead": Patches(2, 4, 2, 64, 16, 4, ahead=True),
}
STRIDED = dict(N=2, C=20, H=9, W=8, K=16, stride=(2, 1), padding=(1, 2), dilation=(1, 2), residual=True)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("tile", PATCHES)
@pytest.mark.parametrize("name", [*CASES, "strided"])
def test_patches(name: str, tile: str, training: bool) -> None:
    index = list(PATCHES).index(tile) + training
    case = separable_case(
        **{**CASES, "strided": STRIDED}[name],
        dtype=(torch.bfloat16, torch.float16)[index % 2],
        training=training,
        seed=6,
    )
    case = case.but(x=in_layout(case.tensors["x"], "channels_last"))
    with forced(separable_conv2d=PATCHES[tile]):
        check(case, "triton", backward=tile == "wide")
    assert backends.counters()["separable_conv2d.forward.triton_fused"]


def test_programs_that_stay_for_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from inception_kernels.triton import runtime

    monkeypatch.setattr(runtime, "without_gpu", runtime.Device((9, 0), 2, 232448))
    case = separable_case(
        N=3, C=40, H=7, W=9, K=24, padding=1, input_activation="relu", residual=True, dtype=torch.bfloat16, seed=2
    )
    with forced(separable_conv2d=PATCHES["ahead"]):
        check(case, "triton", backward=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows", [Rows(2, 3, 64, 4), Rows(4, 5, 128, 4), Rows(3, 99, 64, 4)], ids=lambda r: f"{r.columns}x{r.rows}"
)
@pytest.mark.parametrize("name", CASES)
def test_rolled_rows(name: str, rows: Rows, dtype: str) -> None:
    """Forward, the middle's mask in the backward pass, and the input's gradient."""
    case = separable_case(**CASES[name], dtype=DTYPES[dtype], training=rows.columns == 2, seed=9)
    if rows.columns == 4:
        case = case.but(x=in_layout(case.tensors["x"], "channel_slice"))
    with forced(separable_conv2d=TwoKernels(), depthwise_rows=rows) as told:
        check(case, "triton")
    assert told["depthwise_rows"] >= 2


def test_moments_of_more_tiles_than_are_merged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm, "_TILES_TOGETHER", 3)
    case = separable_case(N=3, C=8, H=11, W=13, K=70, padding=1, dtype=torch.bfloat16, training=True, seed=11)
    with forced(separable_conv2d=Patches(2, 2, 4, 128, 16, 4)):  # 32 tiles, then 11, 4, 2
        check(case, "triton", backward=False)
