"""asymmetric_pair in one kernel: both orders, ragged strips, strides, every epilogue, and NaN that stays in its place."""

import pytest
import torch
from forcing import forced
from operator_cases import check, in_layout, pair_case, run
from test_asymmetric_pair import GEOMETRIES, rotated

from inception_kernels import backends
from inception_kernels.triton import _pair_strips
from inception_kernels.triton._pair_strips import Sizes, Strips
from inception_kernels.triton.runtime import Device

pytestmark = pytest.mark.usefixtures("poisoned_memory")

BF16, F16 = torch.bfloat16, torch.float16
HOPPER = Device((9, 0), 132, 232448)
CASES = {
    **{name: GEOMETRIES[name] for name in ("1x7_7x1", "7x1_1x7", "1x3_3x1", "1x5_5x1_valid", "1x2_2x1_even", "m1", "one_pixel")},
    "window_over_image": GEOMETRIES["window_over_image"],
    "3x3_1x3": dict(N=2, C=8, H=6, W=7, M=9, K=10, windows=((3, 3), (1, 3)), padding1=(1, 1), padding2=(0, 1)),
    "strides": dict(N=2, C=5, H=9, W=8, M=6, K=7, windows=((1, 3), (3, 1)), padding1=(0, 1), padding2=(1, 0), stride1=(1, 2), stride2=(2, 1)),
    "chunks": dict(N=1, C=40, H=5, W=6, M=36, K=40),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_strips(name: str) -> None:
    index = list(CASES).index(name)
    case = pair_case(**CASES[name], **rotated(index), dtype=(BF16, F16)[index % 2], seed=index)
    if index % 3:
        case = case.but(x=in_layout(case.tensors["x"], "channels_last"))
    H = CASES[name]["H"] if CASES[name].get("windows", ((1, 3), (3, 1)))[1][0] > 1 else CASES[name]["W"]
    width = max(1, min(2, 63 // H))
    with forced(asymmetric_pair=Strips(width, 64, 64, 16, 16, 4, 2)):
        check(case, "triton", backward=False)
    assert backends.counters()["asymmetric_pair.forward.triton_strips"] == 1


def test_a_nan_reaches_only_the_outputs_whose_windows_contain_it() -> None:
    case = pair_case(N=1, C=8, H=7, W=7, M=8, K=8, dtype=BF16, mid_activation="none", activation="none")
    case.tensors["x"][0, 3, 2, 4] = float("nan")
    with forced(asymmetric_pair=Strips(3, 64, 16, 16, 16, 4, 2)):
        y = run(case, "triton")
    rows, columns = y.isnan().any(1)[0].nonzero(as_tuple=True)
    assert (set(rows.tolist()), set(columns.tolist())) == ({1, 2, 3}, {3, 4, 5})
    assert int(y[0, 0].isnan().sum()) == 9


def test_configurations_leave_a_row_for_the_padding() -> None:
    same = ((1, 7), (7, 1), (1, 1), (1, 1), (0, 3), (3, 0))
    found = _pair_strips.configurations(128, 128, 192, Sizes((17, 17), (17, 17), (17, 17), *same), BF16, HOPPER)
    assert {(each.rows, each.width) for each in found} == {(64, 3)}
    assert not _pair_strips.configurations(8, 8, 8, Sizes((200, 9), (200, 9), (200, 9), *same), BF16, HOPPER)
    assert not _pair_strips.configurations(8, 8, 300, Sizes((9, 9), (9, 9), (9, 9), *same), BF16, HOPPER)
    crossing = ((1, 7), (7, 3), (1, 1), (1, 1), (0, 3), (3, 1))
    assert not _pair_strips.configurations(8, 8, 8, Sizes((9, 9), (9, 9), (9, 9), *crossing), BF16, HOPPER)
