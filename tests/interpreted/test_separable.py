"""separable_conv2d's own kernels with configurations that predictions would not choose for small shapes."""

import pytest
import torch
from forcing import forced
from operator_cases import check, in_layout, separable_case

from inception_kernels import backends
from inception_kernels.triton import _depthwise, _depthwise_rows_gradient, batch_norm
from inception_kernels.triton._depthwise_rows import Rows
from inception_kernels.triton._depthwise_rows_gradient import Strips
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
    "images": Patches(2, 4, 8, 1, 1, 64, 16, 4),
    "square": Patches(2, 2, 1, 4, 4, 64, 32, 4),
    "large": Patches(4, 4, 1, 1, 4, 64, 16, 4),
    "ahead": Patches(2, 4, 1, 2, 1, 64, 16, 4, ahead=True),
    "images_ahead": Patches(2, 4, 2, 1, 1, 64, 16, 4, ahead=True),
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
        check(case, "triton", backward=tile == "images")
    assert backends.counters()["separable_conv2d.forward.triton_fused"]


@pytest.mark.parametrize("tile", ["ahead", "images_ahead"])
def test_programs_that_stay_for_several_tiles(tile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from inception_kernels.triton import runtime

    monkeypatch.setattr(runtime, "without_gpu", runtime.Device((9, 0), 2, 232448))
    case = separable_case(
        N=3, C=40, H=7, W=9, K=24, padding=1, input_activation="relu", residual=True, dtype=torch.bfloat16, seed=2
    )
    with forced(separable_conv2d=PATCHES[tile]):
        check(case, "triton", backward=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows", [Rows(2, 3, 64, 4), Rows(4, 5, 128, 4), Rows(3, 99, 64, 4)], ids=lambda r: f"{r.columns}x{r.rows}"
)
@pytest.mark.parametrize("name", CASES)
def test_rolled_rows(name: str, rows: Rows, dtype: str) -> None:
    """Forward, the middle's mask in the backward pass, and the gradients of the input and of the weight."""
    case = separable_case(**CASES[name], dtype=DTYPES[dtype], training=rows.columns == 2, seed=9)
    if rows.columns == 4:
        case = case.but(x=in_layout(case.tensors["x"], "channel_slice"))
    strips = Strips(rows.columns, 2 if rows.columns < 4 else 4, 16, 4)
    with forced(separable_conv2d=TwoKernels(), depthwise_rows=rows, depthwise_rows_gradient=strips) as told:
        check(case, "triton")
    assert told["depthwise_rows"] >= 2


def test_a_nan_reaches_the_gradients_of_the_taps_that_meet_it_only() -> None:
    """The last columns of x meet the last taps alone, and the strip has empty columns beside them."""
    x = torch.randn(2, 8, 4, 6).to(memory_format=torch.channels_last)
    x[:, :, :, 5] = float("nan")
    weight, none = torch.randn(8, 1, 2, 2), (0, 0)
    d = _depthwise.prepare(x, weight, None, (1, 1), none, (1, 1), "none", "none")
    grad = torch.randn(2, 8, 3, 5).to(memory_format=torch.channels_last)
    with forced(depthwise_rows_gradient=Strips(4, 2, 16, 4)):
        gradient, bias = _depthwise.weight_gradient(d, grad)
    assert gradient[..., 1].isnan().all()
    assert gradient[..., 0].isfinite().all() and bias.isfinite().all()


def test_a_program_of_several_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_depthwise_rows_gradient, "_MAX_PIECES", 3)
    case = separable_case(N=3, C=24, H=5, W=9, K=8, padding=1, mid_activation="relu", depthwise_bias=True, seed=3)
    with forced(depthwise_rows_gradient=Strips(2, 1, 16, 4)):  # 15 strips in 3 pieces
        check(case, "triton")


def test_moments_of_more_tiles_than_are_merged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm, "_TILES_TOGETHER", 3)
    case = separable_case(N=3, C=8, H=11, W=13, K=70, padding=1, dtype=torch.bfloat16, training=True, seed=11)
    with forced(separable_conv2d=Patches(2, 2, 1, 2, 2, 128, 16, 4)):  # 36 tiles, then 12, 4, 2
        check(case, "triton", backward=False)
