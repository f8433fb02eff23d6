"""The runnable ablations: every variant trains, and the pictures are written."""

import importlib.util
import sys
from dataclasses import replace
from itertools import pairwise
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


def test_students_learn_from_their_teachers(ablations, tmp_path, monkeypatch):
    images = replace(patterns(train=32, size=ablations.SIZE), classes=tuple("0123456789"))
    monkeypatch.setattr(ablations.data, "digits", lambda size: images)
    train, trained = ablations.train, []

    def recorded(variant, images, epochs, seed, taught_by):
        run = train(variant, images, epochs, seed, taught_by)
        trained.append((variant, seed, taught_by, run))
        return run

    monkeypatch.setattr(ablations, "train", recorded)
    ablations.run("distillation", 1, 2, tmp_path, Console(width=120))
    networks = {(variant, seed): run.network for variant, seed, _, run in trained}
    for variant, seed, taught_by, _ in trained:
        assert taught_by is (None if variant.teacher is None else networks[variant.teacher, seed])
    # One start, three kinds of targets: three students, and small ones.
    students = [run for variant, seed, _, run in trained if variant.channels == ablations.STUDENT_CHANNELS and not seed]
    weights = [torch.cat([each.flatten() for each in run.network.parameters()]) for run in students]
    assert len(weights) == 3 and not any(torch.equal(a, b) for a, b in pairwise(weights))
    assert all(run.parameters < trained[0][3].parameters / 10 for run in students)
