"""The runnable ablations: every variant trains, and the pictures are written."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from training_runs import patterns

pytestmark = pytest.mark.usefixtures("one_thread")

PATH = Path(__file__).resolve().parent.parent / "examples" / "ablations.py"


@pytest.fixture(scope="module")
def ablations():
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    spec = importlib.util.spec_from_file_location("ablations", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablations"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["ablations"]


def test_every_variant_trains(ablations, tmp_path, monkeypatch, capsys):
    images = replace(patterns(train=32, size=ablations.SIZE), classes=tuple("0123456789"))
    monkeypatch.setattr(ablations.data, "digits", lambda size: images)
    for name, ablation in ablations.ABLATIONS.items():
        path = ablations.run(name, 1, 1, tmp_path, Console(width=120))
        assert path.stat().st_size > 10_000
        printed = capsys.readouterr().out
        assert all(variant.label in printed for variant in ablation.variants)


def test_variants_differ_in_what_they_compute(ablations):
    x = torch.rand(2, 1, ablations.SIZE, ablations.SIZE)
    for name in ("factors", "intermediate", "residuals", "segments"):
        outputs = []
        for variant in ablations.ABLATIONS[name].variants:
            torch.manual_seed(0)
            outputs.append(ablations.network(variant)(x))
        assert len({tuple(output.flatten().tolist()) for output in outputs}) == len(outputs), name
