"""The same bits whatever the run, the thread count, the memory format and the batch around an image."""

from collections.abc import Iterator

import pytest
import torch
from operator_cases import DTYPES, MAKERS, Case, Outcome, evaluate_on, in_layout, run

pytestmark = pytest.mark.usefixtures("poisoned_memory")

MODES = {"eval": False, "train": True}
# Large enough that two threads share the work, ragged enough that no tile fits.
SIZES = {
    "conv2d_bn_act": [
        dict(N=3, C=35, H=17, W=19, K=67, window=(1, 7), padding=(0, 3)),
        dict(N=3, C=33, H=14, W=15, K=40, window=(3, 3), stride=2, padding=1),
        dict(N=2, C=70, H=13, W=11, K=130, window=(1, 1)),
        dict(N=2, C=24, H=30, W=31, K=33, window=(3, 3)),
        dict(N=2, C=129, H=12, W=16, K=34, window=(3, 3), padding=1),
        dict(N=2, C=1024, H=5, W=6, K=33, window=(1, 1)),
        dict(N=2, C=70, H=35, W=33, K=50, window=(1, 1)),
    ],
    "separable_conv2d": [
        dict(N=3, C=70, H=19, W=17, K=67, padding=1, input_activation="relu"),
        dict(N=2, C=33, H=21, W=22, K=40, window=(5, 3), stride=2, padding=2, mid_activation="relu"),
        dict(N=3, C=642, H=7, W=9, K=161, padding=1),
        dict(N=2, C=35, H=7, W=9, K=520, padding=1),
        dict(N=2, C=642, H=12, W=13, K=545, padding=1),
    ],
    "asymmetric_pair": [
        dict(N=3, C=35, H=17, W=16, M=33, K=67, windows=((1, 7), (7, 1)), padding1=(0, 3), padding2=(3, 0)),
    ],
}
EVERY = [(op, i) for op, sizes in SIZES.items() for i in range(len(sizes))]
IDS = [f"{op}_{i}" for op, i in EVERY]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def case_of(which: tuple[str, int], dtype: str, mode: str) -> Case:
    operator, index = which
    case = MAKERS[operator](**SIZES[operator][index], dtype=DTYPES[dtype], training=MODES[mode], seed=11)
    return case.but(x=in_layout(case.tensors["x"], "channels_last"))


def outcome_of(case: Case) -> Outcome:
    y = run(case.but(**{n: t.clone() for n, t in case.tensors.items()}), "cpu")
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y.dtype)
    return evaluate_on("cpu", case, grad_y.to(memory_format=torch.channels_last))


def assert_same_bits(a: Outcome, b: Outcome) -> None:
    assert torch.equal(a.y, b.y), f"y differs by up to {(a.y - b.y).abs().max()}"
    assert set(a.grads) == set(b.grads)
    for name in a.grads:
        difference = (a.grads[name] - b.grads[name]).abs().max()
        assert torch.equal(a.grads[name], b.grads[name]), f"gradient of {name} differs by up to {difference}"
    for name in a.statistics:
        assert torch.equal(a.statistics[name], b.statistics[name]), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", EVERY, ids=IDS)
def test_core_thread_count_does_not_matter(which, dtype, mode, threads):
    case = case_of(which, dtype, mode)
    outcomes = []
    for count in (1, 2, 2):  # the third also shows run-to-run differences
        torch.set_num_threads(count)
        outcomes.append(outcome_of(case))
    assert_same_bits(outcomes[0], outcomes[1])
    assert_same_bits(outcomes[1], outcomes[2])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", EVERY, ids=IDS)
def test_memory_format_does_not_matter(which, dtype, mode):
    case = case_of(which, dtype, mode)
    expected = outcome_of(case)
    for layout in ("contiguous", "channel_slice", "spatial_slice"):
        assert_same_bits(expected, outcome_of(case.but(x=in_layout(case.tensors["x"], layout))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", EVERY, ids=IDS)
def test_one_image_does_not_depend_on_its_batch(which, dtype):
    case = case_of(which, dtype, "eval")
    x = case.tensors["x"]
    whole = run(case, "cpu")
    for i in range(x.shape[0]):
        assert torch.equal(run(case.but(x=x[i : i + 1]), "cpu"), whole[i : i + 1]), f"image {i}"
    assert torch.equal(run(case.but(x=x.flip(0)), "cpu"), whole.flip(0))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("which", EVERY, ids=IDS)
def test_gradient_of_one_image_does_not_depend_on_its_batch(which, dtype):
    case = case_of(which, dtype, "eval")
    grad_y = torch.randn(run(case, "cpu").shape, generator=torch.Generator().manual_seed(7)).to(DTYPES[dtype])
    whole = evaluate_on("cpu", case, grad_y).grads["x"]
    single = evaluate_on("cpu", case.but(x=case.tensors["x"][1:2]), grad_y[1:2]).grads["x"]
    assert torch.equal(single, whole[1:2])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operator", SIZES)
def test_layout_of_the_incoming_gradient_does_not_matter(operator, mode):
    case = case_of((operator, 0), "f32", mode)
    shape = run(case.but(**{n: t.clone() for n, t in case.tensors.items()}), "cpu").shape
    one = torch.full((1, 1, 1, 1), 0.37).expand(shape)
    assert_same_bits(evaluate_on("cpu", case, one.contiguous()), evaluate_on("cpu", case, one))
    grad_y = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    expected = evaluate_on("cpu", case, grad_y)
    for layout in ("channels_last", "channel_slice", "spatial_slice", "transposed", "every_other_image"):
        assert_same_bits(expected, evaluate_on("cpu", case, in_layout(grad_y, layout)))


@pytest.mark.parametrize("operator", SIZES)
def test_inference_mode_does_not_matter(operator):
    """Where a gradient is wanted the raw convolution is rounded in between, as PyTorch's is."""
    case = case_of((operator, 0), "f32", "eval")
    expected = run(case, "cpu")
    with torch.no_grad():
        assert torch.equal(run(case, "cpu"), expected)
    with torch.inference_mode():
        y = run(case, "cpu")
        assert y.is_inference()
        assert torch.equal(y, expected)
