"""label_smoothing_cross_entropy on the Triton kernels: the host's own cases, and what differs on a device."""

from collections.abc import Iterator

import pytest
import test_label_smoothing_cross_entropy as host
import torch
from helpers import assert_as_accurate
from torch import Tensor

import inception_kernels as ik
from inception_kernels import backends

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@pytest.fixture(autouse=True)
def _on_triton() -> Iterator[None]:
    backends.reset_counters()
    with backends.use_backend("triton"):
        yield
    assert any(name.startswith("label_smoothing_cross_entropy.forward.triton") for name in backends.counters())


def as_accurate_as_pytorch(ours: tuple[Tensor, Tensor], logits: Tensor, target: Tensor) -> None:
    """Loss and gradient against float64."""
    baseline = host.loss_and_gradient(host.torchs, logits, target)
    exact = host.loss_and_gradient(host.torchs, logits.double(), target)
    for name, *values in zip(("loss", "gradient"), ours, baseline, exact, strict=True):
        assert_as_accurate(*values, name)


@pytest.mark.parametrize("reduction", host.REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", host.SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_core_sizes(size: tuple[int, int], dtype: str, reduction: str) -> None:
    logits, target = host.problem(*size, DTYPES[dtype], scale=2.0)
    target[0] = -100 if size[0] > 4 else target[0]
    grad = torch.linspace(0.5, 1.5, size[0]) if reduction == "none" else torch.tensor(0.75)
    host.check(logits, target, grad=grad, reduction=reduction)


@pytest.mark.parametrize("reduction", host.REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("K", [3, 40, 5000])
def test_class_weights(K: int, smoothing: float, reduction: str) -> None:
    logits, target = host.problem(6, K)
    weight = torch.rand(K, generator=torch.Generator().manual_seed(1)) + 0.5
    host.check(logits, target, weight, smoothing=smoothing, reduction=reduction)


@pytest.mark.parametrize("padding", [0, 5000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("row", host.ROWS)
def test_nonfinite_logits_give_what_pytorch_gives(row: str, smoothing: float, padding: int) -> None:
    host.test_nonfinite_logits_give_what_pytorch_gives(row, smoothing, padding)


@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
@pytest.mark.parametrize("K", [3, 5000])
def test_logits_of_any_size(K: int, size: float) -> None:
    host.test_logits_of_any_size(K, size)


def test_a_hundred_thousand_classes() -> None:
    host.check(*host.problem(2, 100_000))


def test_ignored_rows_have_neither_loss_nor_gradient() -> None:
    logits, target = host.problem(5, 12)
    counted, labels = logits[[0, 2, 4]], target[[0, 2, 4]]
    logits[1], logits[3] = float("nan"), float("inf")
    target[1] = target[3] = 255
    loss, gradient = host.loss_and_gradient(ik.label_smoothing_cross_entropy, logits, target, ignore_index=255)
    as_accurate_as_pytorch((loss, gradient[[0, 2, 4]]), counted, labels)
    assert not gradient[[1, 3]].any()


@pytest.mark.parametrize("label", [-1, 12, 10**12])
def test_a_label_that_is_no_class_gives_nan_and_reads_nothing_else(label: int) -> None:
    logits, target = host.problem(5, 12)
    target[2] = label
    loss, gradient = host.loss_and_gradient(ik.label_smoothing_cross_entropy, logits, target, reduction="none")
    assert loss.isnan().tolist() == [False, False, True, False, False]
    assert gradient.isnan().all(1).tolist() == [False, False, True, False, False]


def test_other_layouts_and_shapes() -> None:
    logits = torch.randn(2, 7, 3, 5, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 7, (2, 3, 5), generator=torch.Generator().manual_seed(1))
    as_accurate_as_pytorch(host.loss_and_gradient(ik.label_smoothing_cross_entropy, logits, target), logits, target)
