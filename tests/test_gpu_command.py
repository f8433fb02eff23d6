"""`make gpu`: steps that fail, hang or are cut short cost nothing of the others; and the whole of it, rehearsed."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tools.gpu import __main__ as command
from tools.gpu import runner, steps
from tools.gpu.steps import Step

GOOD = """
from tools.gpu.options import parse
options = parse()
options.write("did it", quick=options.quick, what=options.what)
"""
BAD = "raise SystemExit('no such thing')"
HANGS = """
import subprocess, sys, time
from tools.gpu.options import parse
parse().write("half of it")
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
time.sleep(60)
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules tools.gpu.good, .bad and .hangs beside the real ones."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name, text in (("good", GOOD), ("bad", BAD), ("hangs", HANGS)):
        (folder / f"{name}.py").write_text(text)
    (folder / "sitecustomize.py").write_text(f"import tools.gpu\ntools.gpu.__path__.append({str(folder)!r})\n")
    monkeypatch.setattr(runner, "_python_path", lambda: f"{folder}:{runner.ROOT}")
    return tmp_path / "out"


def step(name: str, module: str, seconds: float = 60, needs: str = "") -> Step:
    return Step(name, "check", module, "", seconds, seconds, (), needs)


def test_a_failure_and_a_hang_lose_nothing(scripts: Path) -> None:
    wanted = [
        step("first", "good"),
        step("broken", "bad"),
        step("stuck", "hangs", seconds=8),
        step("pointless", "good", needs="broken"),
        step("last", "good", needs="first"),
    ]
    outcomes = {each.step: each for each in runner.run(wanted, runner.Settings(scripts, quick=True))}
    assert [each.status for each in outcomes.values()] == ["ok", "failed", "timed out", "skipped", "ok"]
    assert "no such thing" in outcomes["broken"].reason
    assert outcomes["stuck"].seconds < 30 and outcomes["stuck"].summary == "half of it"
    assert outcomes["pointless"].reason == "broken: failed"
    result = json.loads((scripts / "last" / "result.json").read_text())
    assert result == {"summary": "did it", "quick": True, "what": ""}
    assert "| last | ok |" in (scripts / runner.SUMMARY).read_text()


def test_resume_repeats_only_what_did_not_end_well(scripts: Path) -> None:
    runner.run([step("first", "good"), step("second", "bad")], runner.Settings(scripts))
    (scripts / "first" / "result.json").unlink()
    outcomes = runner.run([step("first", "good"), step("second", "good")], runner.Settings(scripts, resume=True))
    assert [each.status for each in outcomes] == ["ok", "ok"]
    assert not (scripts / "first" / "result.json").exists()
    assert (scripts / "second" / "result.json").exists()


def test_the_limit_of_the_run_holds(scripts: Path) -> None:
    outcomes = runner.run([step("first", "good"), step("second", "good")], runner.Settings(scripts, limit=5))
    assert outcomes[-1].status == runner.OUT_OF_TIME


def test_steps_by_part_and_by_name() -> None:
    assert [each.name for each in steps.chosen("tune,environment")] == ["environment", "triton_tuning", "tuning"]
    assert len(steps.chosen("")) == len(steps.STEPS)
    with pytest.raises(ValueError, match="got nonsense"):
        steps.chosen("nonsense")


def test_quick_fits_ten_minutes() -> None:
    names = [each.name for each in steps.STEPS]
    assert len(set(names)) == len(names)
    assert all(each.needs in {"", *names} for each in steps.STEPS)
    assert command._QUICK_LIMIT_SECONDS < 600


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert command.main([str(tmp_path), "--parts", "environment"]) == 1
    assert "no GPU" in (tmp_path / runner.SUMMARY).read_text()


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    """All steps but the build, which these tests have behind them."""
    wanted = ",".join(each.name for each in steps.STEPS if each.name != "build")
    archive = tmp_path / "gpu.tar.gz"
    status = command.main([str(tmp_path / "out"), "--rehearse", "--parts", wanted, "--archive", str(archive)])
    summary = (tmp_path / "out" / runner.SUMMARY).read_text()
    assert status == 0, summary
    assert "no number here is a result" in summary
    with tarfile.open(archive) as packed:
        names = packed.getnames()
    assert "gpu/steps.json" in names
    assert not [name for name in names if name.endswith(("operators.json", "networks.json"))]
