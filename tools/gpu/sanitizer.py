"""compute-sanitizer over small calls of every operator: memcheck, racecheck, synccheck or initcheck."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from build_backend.toolchain import find_nvcc
from tools.gpu.options import ROOT, Options, parse

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_TARGET = "calls"
_FOUND = 86  # the exit status that compute-sanitizer is told to use


def main(options: Options) -> int:
    if options.what == _TARGET:
        return _calls(options)
    if options.what not in TOOLS:
        raise ValueError(f"expected one of {', '.join(TOOLS)}, got {options.what!r}")
    target = [sys.executable, "-m", "tools.gpu.sanitizer", _TARGET, "--output", str(options.output / "calls")]
    target += ["--seconds", f"{options.seconds:g}", *(["--quick"] if options.quick else [])]
    tool = _compute_sanitizer()
    if options.rehearse:
        code = subprocess.run([*target, "--rehearse"], cwd=ROOT, stdin=subprocess.DEVNULL).returncode
        options.write(f"calls ran without a checker: {tool or 'there is no compute-sanitizer'}")
        return code
    if tool is None:
        options.write("compute-sanitizer is not installed")
        return 1
    return _check(options, tool, target)


def _check(options: Options, tool: str, target: list[str]) -> int:
    command = [tool, "--tool", options.what, "--error-exitcode", str(_FOUND), "--print-limit", "20"]
    if options.what != "initcheck":  # which must see who writes a tensor first
        command += ["--kernel-name", "kns=ik"]
    # Allocations of their own, not parts of one large one: an access past the end is then an error.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    log = options.output / "sanitizer.txt"
    with log.open("wb") as file:
        done = subprocess.run(
            [*command, *target], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    text = log.read_text(encoding="utf-8", errors="replace")
    print(text[-4000:])
    verdicts = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    options.write(verdicts[-1] if verdicts else f"no verdict, exit status {done.returncode}")
    return done.returncode


def _compute_sanitizer() -> str | None:
    compiler = find_nvcc()
    beside = str(Path(compiler).resolve().parent) if compiler else ""
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=beside)


def _calls(options: Options) -> int:
    """What the sanitizer watches: one call per operator and way to be odd, in bfloat16."""
    import torch

    from tools.gpu import cases

    backend = "cpu" if options.rehearse else "cuda"
    calls = list(cases.ragged())
    calls = calls[:3] if options.rehearse else calls[::3] if options.quick else calls
    for call in calls:
        print(call.name, flush=True)
        call.run(torch.bfloat16, options.device, backend)
    return 0


if __name__ == "__main__":
    sys.exit(main(parse()))
