"""nvcc to one cubin per source and architecture, cached by the text of everything that was read."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from build_backend.ninja_build import max_jobs
from tools.cubin_gates import binaries

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / "build" / "cubins"

# As the extension is compiled (build_backend/build_ext.py), with the resource usage printed.
FLAGS = ("-std=c++20", "-O3", "-lineinfo", "-Xptxas=-v")
SM80, SM90A = "80", "90a"

_RESOURCES = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for 'sm_\w+'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of one kernel; bytes of shared memory are the static ones."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


@dataclass(frozen=True)
class Cubin:
    source: Path
    arch: str
    path: Path
    resources: dict[str, Resources]  # by mangled name
    warnings: tuple[str, ...]


class CompileError(RuntimeError):
    """nvcc failed; the message is its own."""


def architectures(source: Path) -> tuple[str, ...]:
    """A file of Hopper kernels is compiled for Hopper alone."""
    return (SM90A,) if source.stem.endswith("_sm90") else (SM80, SM90A)


def compile_all(jobs: list[tuple[Path, str]], defines: tuple[str, ...] = ()) -> list[Cubin]:
    """One cubin per (source, architecture), in that order; nvcc runs in parallel."""
    with ThreadPoolExecutor(max_jobs()) as pool:
        return list(pool.map(lambda job: compile_cubin(job[0], job[1], defines), jobs))


def compile_cubin(source: Path, arch: str, defines: tuple[str, ...] = ()) -> Cubin:
    """
    Raises:
        MissingTool: there is no nvcc.
        CompileError: the source does not compile.
    """
    compiler = binaries.nvcc()
    flags = (*FLAGS, *defines, "-I", str(ROOT / "csrc"))
    key = _key(source, arch, (compiler, *FLAGS, *defines))
    cubin = CACHE / f"{source.stem}.sm_{arch}.{key}.cubin"
    log = cubin.with_suffix(".json")
    if not log.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = cubin.with_suffix(f".{hashlib.sha256(str(source).encode()).hexdigest()[:8]}.partial")
        gencode = f"-gencode=arch=compute_{arch},code=sm_{arch}"
        command = [compiler, *flags, gencode, "-cubin", str(source), "-o", str(partial)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise CompileError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        partial.replace(cubin)
        log.write_text(json.dumps(done.stdout + done.stderr), encoding="utf-8")
    text = json.loads(log.read_text(encoding="utf-8"))
    return Cubin(source, arch, cubin, parse_resources(text), parse_warnings(text))


def parse_resources(log: str) -> dict[str, Resources]:
    found = {}
    for match in _RESOURCES.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        numbers = (match["registers"], match["stack"], match["stores"], match["loads"], shared[1] if shared else "0")
        found[match["name"]] = Resources(*map(int, numbers))
    return found


def parse_warnings(log: str) -> tuple[str, ...]:
    """Warnings and advice, for example that wgmma was serialised or a register count ignored."""
    lines = [line.strip() for line in log.splitlines()]
    return tuple(dict.fromkeys(line for line in lines if re.search(r"warning|Potential Performance Loss", line, re.I)))


def _key(source: Path, arch: str, command: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\0".join((arch, *command)).encode())
    for path in sorted(read_files(source)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def read_files(source: Path) -> set[Path]:
    """The source and every header of this repository that it includes, directly or not."""
    found: set[Path] = set()
    pending = [source.resolve()]
    while pending:
        path = pending.pop()
        if path in found:
            continue
        found.add(path)
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            candidates = ((path.parent / name).resolve(), ROOT / "csrc" / name)
            pending += [each for each in candidates if each.is_file()][:1]
    return found
