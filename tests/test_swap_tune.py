"""`tune`: measured once per distinct layer, kept on disk, and what it chose runs."""

import json
import threading

import pytest
import torch
from helpers import randomize_batch_norm
from swap_models import Branches, Residual

from inception_kernels.swap import explain, swap, tune, unswap

SIZE = (1, 3, 21, 19)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IK_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "swap_tune.json"


def measured(fused: float, original: float):
    return lambda *args: {"fused_ms": fused, "original_ms": original}


def test_measures_each_distinct_layer_once_and_keeps_it(cache):
    x = torch.randn(SIZE)
    model = randomize_batch_norm(Residual()).eval()
    report = swap(model, tune=x)
    assert len(report.tuning) == 6
    # block.rep.7 has the shape of block.rep.4 but no ReLU after it; all six layers differ.
    assert len(json.loads(cache.read_text())) == 6
    assert not any(tuned.cached for tuned in report.tuning)
    assert {tuned.mode for tuned in report.tuning} == {"inference"}
    assert all(tuned.fused_ms > 0 and tuned.original_ms > 0 for tuned in report.tuning)
    assert "Measured on this machine" in str(report)
    json.loads(report.to_json())
    unswap(model)
    again = swap(model, tune=x)
    assert all(tuned.cached for tuned in again.tuning)
    assert [tuned.choice for tuned in again.tuning] == [tuned.choice for tuned in report.tuning]


def test_training_is_measured_too_and_changes_nothing():
    model = randomize_batch_norm(Branches()).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    report = swap(model, tune=torch.randn(2, 3, 21, 19))
    assert {tuned.mode for tuned in report.tuning} == {"inference", "training"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_the_choice_runs(monkeypatch):
    x = torch.randn(SIZE)
    model = randomize_batch_norm(Residual()).eval()
    with torch.no_grad():
        expected = model(x)
    monkeypatch.setattr(tune, "_measure", measured(2.0, 1.0))
    report = swap(model, tune=x)
    assert {tuned.choice for tuned in report.tuning} == {"original"}
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    states = explain(model).layers
    assert {state.ran for state in states} == {"original"}
    assert all("tune measured" in state.reasons["fused"] for state in states)
    assert states[0].tuned == {"inference": "original"}


def test_a_slower_fused_layer_is_never_chosen(monkeypatch):
    model = randomize_batch_norm(Branches()).eval()
    monkeypatch.setattr(tune, "_measure", measured(1.0, 2.0))
    assert {tuned.choice for tuned in swap(model, tune=torch.randn(SIZE)).tuning} == {"fused"}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1, 2]", '{"a": 3}', '{"a": {"fused_ms": "fast"}}', "\x00\xff", '{"a": {"fused_ms": NaN}}'],
)
def test_a_damaged_cache_is_measured_again(cache, content):
    cache.parent.mkdir()
    cache.write_text(content, encoding="latin-1")
    report = swap(randomize_batch_norm(Branches()).eval(), tune=torch.randn(SIZE))
    assert not any(tuned.cached for tuned in report.tuning)
    assert len(json.loads(cache.read_text())) == 4


def test_a_cache_that_cannot_be_written_is_reported(monkeypatch, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("IK_CACHE_DIR", str(blocked))
    report = swap(randomize_batch_norm(Branches()).eval(), tune=torch.randn(SIZE))
    assert len(report.tuning) == 4
    assert "cannot be written" in caplog.text


def test_concurrent_writers_lose_nothing(cache):
    def write(writer: int) -> None:
        for entry in range(20):
            tune.CACHE.add({f"{writer}.{entry}": {"fused_ms": 1.0, "original_ms": 2.0}})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = tune.CACHE.read()
    assert len(entries) == 80
    assert all(entry == {"fused_ms": 1.0, "original_ms": 2.0} for entry in entries.values())
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_keys_hold_everything_a_measurement_depends_on(cache):
    swap(randomize_batch_norm(Branches()).eval(), tune=torch.randn(SIZE))
    key = json.loads(next(iter(json.loads(cache.read_text()))))
    assert {"name", "isa", "threads", "torch", "kernels", "dtype", "input", "mode", "backend"} <= set(key)
