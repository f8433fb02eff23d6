"""What runs of the Triton kernels, and what is told about it: tuning, last_choice, and the layers of a swapped model."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from operator_cases import check, conv_case
from torch import nn

import inception_kernels as ik
from inception_kernels import backends
from inception_kernels.swap import trial, tune
from inception_kernels.triton import tuning


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("IK_CACHE_DIR", str(tmp_path))
    tuning.forget()
    yield
    tuning.forget()


def later_is_faster() -> Callable[[Callable[[], object]], float]:
    count = 0

    def timer(launch: Callable[[], object]) -> float:
        nonlocal count
        launch()
        count += 1
        return 1.0 / count

    return timer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["descriptors", "pointers"])
def test_the_tuned_configuration_runs_and_is_right(dtype: torch.dtype) -> None:
    case = conv_case(N=2, C=16, H=4, W=5, K=24, window=(1, 3), padding=(0, 1), dtype=dtype)
    with ik.use_backend("triton"):
        x, weight = case.tensors["x"], case.tensors["weight"]
        ik.conv2d_bn_act(x, weight, padding=(0, 1))
        (predicted,) = backends.last_choice().selections
        with tuning.tuning(later_is_faster()):
            ik.conv2d_bn_act(x, weight, padding=(0, 1))
        (tuned,) = backends.last_choice().selections
    assert "predicted" in predicted.why and "measured" in tuned.why
    assert tuned.configuration != predicted.configuration
    with tuning.tuning(later_is_faster()):
        check(case, "triton")


class Layer(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(8, 24, (1, 3), padding=(0, 1), bias=False), nn.BatchNorm2d(24), nn.ReLU())


@pytest.fixture
def competing(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Triton takes part on the CPU, too; the times that are measured are the ones given here."""
    times = {"fused_ms": 2.0, "original_ms": 3.0, "triton_ms": 1.0}
    monkeypatch.setattr(trial, "takes_triton", lambda layer, x: backends.forced() is None)
    monkeypatch.setattr(tune, "_measure", lambda *_: times)
    return times


def test_a_layer_that_triton_runs_fastest_runs_on_triton(competing: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = Layer().eval()
    x = torch.randn(2, 8, 5, 6)
    with torch.no_grad():
        expected = model(x)
        report = ik.swap(model, tune=x)
        assert [(each.choice, each.triton_ms) for each in report.tuning] == [("triton", 1.0)]
        backends.reset_counters()
        y = model(x)
    assert backends.counters()["conv2d_bn_act.forward.triton"] == 1
    torch.testing.assert_close(y, expected)
    (state,) = ik.explain(model).layers
    assert (state.backend, state.tuned) == ("triton", {"inference": "triton"})
    assert len(state.configurations) == 1 and state.configurations[0].startswith("convolution(m=")
    assert "convolution(m=" in str(ik.explain(model))
    assert backends.forced() is None and backends.decide("conv2d_bn_act", x)[0] != "triton"


def test_a_layer_that_is_wrong_on_triton_does_not_run_there(
    competing: dict[str, float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    call = trial.FusedLayer.__call__

    def defective(self, x, parts):
        return call(self, x, parts) + (0.1 if backends.forced() == "triton" else 0.0)

    monkeypatch.setattr(trial.FusedLayer, "__call__", defective)
    report = ik.swap(Layer().eval(), tune=torch.randn(2, 8, 5, 6))
    assert [each.choice for each in report.tuning] == ["fused"]
    assert "the Triton kernel is off by" in caplog.text


def test_a_measurement_without_triton_is_made_again(
    competing: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 8, 5, 6)
    with monkeypatch.context() as patch:
        patch.setattr(trial, "takes_triton", lambda layer, x: False)
        patch.setattr(tune, "_measure", lambda *_: {"fused_ms": 1.0, "original_ms": 2.0})
        assert [each.choice for each in ik.swap(Layer().eval(), tune=x).tuning] == ["fused"]
    report = ik.swap(Layer().eval(), tune=x)
    assert [(each.choice, each.cached) for each in report.tuning] == [("triton", False)]
    assert [each.cached for each in ik.swap(Layer().eval(), tune=x).tuning] == [True]


def test_all_contenders_are_timed_and_triton_is_tuned_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "takes_triton", lambda layer, x: backends.forced() is None)
    timed = partial(tuning.tuning, later_is_faster())
    monkeypatch.setattr(tune.triton_tuning, "tuning", timed)
    monkeypatch.setattr(tune, "_ROUNDS", 1)
    backends.reset_counters()
    (layer,) = ik.swap(Layer().eval(), tune=torch.randn(2, 8, 5, 6)).tuning
    assert layer.triton_ms is not None and min(layer.fused_ms, layer.original_ms, layer.triton_ms) > 0
    assert backends.counters()["conv2d_bn_act.forward.triton"] >= 2
    assert [entry["of"] > 1 for entry in tuning.CACHE.read().values()] == [True]
