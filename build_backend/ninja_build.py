"""Compile and link one shared object: with ninja where there is one, so incrementally, else directly."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One command; `depfile` is where a compiler leaves the headers it read."""

    command: list[str]
    inputs: list[Path]
    output: Path
    depfile: Path | None = None


def build(compile_steps: list[Step], link_step: Step, folder: Path, root: Path) -> None:
    """Run the steps from `root`. Raises SystemExit with one sentence after the compiler's own messages."""
    for step in (*compile_steps, link_step):
        step.output.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        # This environment's ninja before the system's: another version's log would mean a full rebuild.
        search = (os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath))
        ninja = shutil.which("ninja", path=os.pathsep.join(search))
        if ninja:
            script = folder / f"{link_step.output.stem}.ninja"
            script.write_text(ninja_script([*compile_steps, link_step], folder))
            command = [ninja, "-f", str(script), "-j", str(max_jobs())]
            failed = subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL).returncode
        else:
            failed = _run_directly(compile_steps, link_step, folder, root)
    if failed:
        raise SystemExit("Building inception_kernels failed: the compiler's messages are above.")


def ninja_script(steps: list[Step], folder: Path) -> str:
    lines = ["ninja_required_version = 1.8", f"builddir = {_escape(folder)}"]
    for number, step in enumerate(steps):
        lines += [f"rule r{number}", f"  command = {shlex.join(step.command).replace('$', '$$')}"]
        if step.depfile:
            lines += [f"  depfile = {_escape(step.depfile)}", "  deps = gcc"]
        lines.append(f"  description = {_name(step, folder)}")
        inputs = " ".join(_escape(path) for path in step.inputs)
        lines.append(f"build {_escape(step.output)}: r{number} {inputs}")
    return "\n".join(lines) + "\n"


def max_jobs() -> int:
    given = os.environ.get("MAX_JOBS")
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdigit() or int(given) < 1:
        raise SystemExit(f"MAX_JOBS must be a positive number, but is {given!r}.")
    return int(given)


def _run_directly(compile_steps: list[Step], link_step: Step, folder: Path, root: Path) -> int:
    def run(step: Step) -> int:
        print(_name(step, folder), flush=True)
        return subprocess.run(step.command, cwd=root, stdin=subprocess.DEVNULL).returncode

    with ThreadPoolExecutor(max_jobs()) as pool:
        failed = any(list(pool.map(run, compile_steps)))
    return int(failed) or run(link_step)


def _name(step: Step, folder: Path) -> str:
    return step.output.relative_to(folder).as_posix()


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # Two builds of one tree (an editor's and a terminal's) share the objects.
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
