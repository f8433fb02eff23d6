"""Run steps one after the other, each in a process group of its own, and keep a record after each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.gpu.options import RESULT, ROOT
from tools.gpu.steps import Step

RECORD, SUMMARY = "steps.json", "summary.md"
OK, FAILED, TIMED_OUT, SKIPPED, OUT_OF_TIME = "ok", "failed", "timed out", "skipped", "out of time"
_REHEARSAL_SECONDS = 300.0
_LEAST_SECONDS = 10.0  # a step with less time left is not worth starting
_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Settings:
    """`limit` is the time of the whole run in seconds."""

    output: Path
    quick: bool = False
    rehearse: bool = False
    resume: bool = False
    limit: float | None = None


@dataclass
class Outcome:
    step: str
    status: str
    seconds: float = 0.0
    reason: str = ""
    summary: str = ""


def run(steps: Sequence[Step], settings: Settings) -> list[Outcome]:
    """One outcome per step. With `resume`, steps that ended well in an earlier run are taken from its record."""
    settings.output.mkdir(parents=True, exist_ok=True)
    earlier = read_record(settings.output) if settings.resume else {}
    begun = time.monotonic()
    outcomes: dict[str, Outcome] = dict(earlier)
    ran: list[Outcome] = []
    for step in steps:
        known = earlier.get(step.name)
        if known is not None and known.status == OK:
            ran.append(known)
            continue
        left = None if settings.limit is None else settings.limit - (time.monotonic() - begun)
        outcome = _attempt(step, settings, outcomes, left)
        outcomes[step.name] = outcome
        ran.append(outcome)
        print(
            f"{outcome.step}: {outcome.status}, {outcome.seconds:.0f} s. {outcome.summary or outcome.reason}",
            flush=True,
        )
        _write(settings, outcomes)
    return ran


def read_record(output: Path) -> dict[str, Outcome]:
    path = output / RECORD
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    return {each["step"]: Outcome(**each) for each in document["steps"]}


def _attempt(step: Step, settings: Settings, outcomes: dict[str, Outcome], left: float | None) -> Outcome:
    needed = outcomes.get(step.needs)
    if needed is not None and needed.status in (FAILED, TIMED_OUT):
        return Outcome(step.name, SKIPPED, reason=f"{step.needs}: {needed.status}")
    seconds = step.quick_seconds if settings.quick else step.full_seconds
    if settings.rehearse:  # on a small machine that may do other things; the build is the same there
        seconds = max(step.full_seconds, _REHEARSAL_SECONDS)
    if left is not None:
        if left < _LEAST_SECONDS:
            return Outcome(step.name, OUT_OF_TIME, reason=f"the run's limit of {settings.limit:g} s was reached")
        seconds = min(seconds, left)
    return _execute(step, settings, seconds)


def _execute(step: Step, settings: Settings, seconds: float) -> Outcome:
    folder = settings.output / step.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).unlink(missing_ok=True)
    flags = [*(["--quick"] if settings.quick else []), *(["--rehearse"] if settings.rehearse else [])]
    own_seconds = max(seconds - _GRACE_SECONDS, 1.0)  # a step that minds its time ends before it is ended
    command = [sys.executable, "-m", f"tools.gpu.{step.module}", *step.arguments]
    command += ["--output", str(folder), "--seconds", f"{own_seconds:g}", *flags]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": _python_path()}
    environment.setdefault("IK_CACHE_DIR", str(settings.output / "cache"))  # what one step tunes, the next ones use
    if settings.rehearse:  # small tensors, on machines that do other things meanwhile
        environment["OMP_NUM_THREADS"] = "1"
    begun = time.monotonic()
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    spent = round(time.monotonic() - begun, 1)
    summary = str(_result(folder).get("summary", ""))
    if code is None:
        return Outcome(step.name, TIMED_OUT, spent, f"did not end within {seconds:g} s", summary)
    if code:
        return Outcome(step.name, FAILED, spent, f"exit status {code}: {_last_line(folder / 'log.txt')}", summary)
    return Outcome(step.name, OK, spent, "", summary)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The step and whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _result(folder: Path) -> dict[str, Any]:
    path = folder / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def _write(settings: Settings, outcomes: dict[str, Outcome]) -> None:
    document = {
        "rehearsal": settings.rehearse,
        "quick": settings.quick,
        "steps": [asdict(each) for each in outcomes.values()],
    }
    (settings.output / RECORD).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    rows = ["| step | status | seconds | result |", "|---|---|---:|---|"]
    for each in outcomes.values():
        text = " ".join(filter(None, [each.summary, each.reason])).replace("|", "\\|")
        rows.append(f"| {each.step} | {each.status} | {each.seconds:.0f} | {text} |")
    title = "# Rehearsal without a GPU: no number here is a result" if settings.rehearse else "# GPU run"
    (settings.output / SUMMARY).write_text("\n".join([title, "", *rows, ""]), encoding="utf-8")
