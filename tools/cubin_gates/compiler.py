"""nvcc to one cubin per source and architecture, cached by the text of everything that was read."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from build_backend.ninja_build import max_jobs
from tools.cubin_gates import binaries

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / "build" / "cubins"

# As the extension is compiled (build_backend/build_ext.py), with ptxas' remarks.
FLAGS = ("-std=c++20", "-O3", "-lineinfo", "-Xptxas=-v")
SM80, SM90A = "80", "90a"


@dataclass(frozen=True)
class Cubin:
    """`remarks` are ptxas' warnings; None where the cubin was taken from the extension's object, which has none."""

    source: Path
    arch: str
    path: Path
    remarks: tuple[str, ...] | None


class CompileError(RuntimeError):
    """nvcc failed; the message is its own."""


def kernel_sources() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def architectures(source: Path) -> tuple[str, ...]:
    """Files of Hopper kernels, <op>_sm90*.cu, have none for earlier GPUs."""
    return (SM90A,) if "_sm90" in source.stem else (SM80, SM90A)


def cubins(jobs: list[tuple[Path, str]], defines: tuple[str, ...] = ()) -> list[Cubin]:
    """One cubin per (source, architecture), in that order; where nvcc must run it runs in parallel."""
    with ThreadPoolExecutor(max_jobs()) as pool:
        return list(pool.map(lambda job: cubin_of(job[0], job[1], defines), jobs))


def cubin_of(source: Path, arch: str, defines: tuple[str, ...] = ()) -> Cubin:
    """From the extension's object where that is newer than all it was made of, else compiled, once per content.

    Raises:
        MissingTool: nvcc or cuobjdump is needed and not there.
        CompileError: the source does not compile.
    """
    key = _key(source, arch, (*FLAGS, *defines))
    cubin = CACHE / f"{source.stem}.sm_{arch}.{key}.cubin"
    log = cubin.with_suffix(".json")
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(cubin.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be compiling the same
        if not cubin.exists() and (defines or not _extract(source, arch, cubin)):
            _compile(source, arch, cubin, log, defines)
    return Cubin(source, arch, cubin, _remarks(log))


def _extract(source: Path, arch: str, cubin: Path) -> bool:
    """From the newest object of the extension, if it is current and holds this architecture."""
    path = source.resolve()
    if not path.is_relative_to(ROOT):
        return False
    objects = sorted(
        (ROOT / "build").glob(f"native-*/{path.relative_to(ROOT)}.o"), key=lambda each: each.stat().st_mtime
    )
    newest = max(each.stat().st_mtime for each in read_files(source))
    if not objects or objects[-1].stat().st_mtime <= newest:
        return False
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        command = [binaries.cuobjdump(), "-xelf", "all", str(objects[-1])]
        done = subprocess.run(command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL)
        found = sorted(Path(folder).glob(f"*.sm_{arch}.cubin"))
        if done.returncode or not found:
            return False
        found[0].replace(cubin)
    return True


def _compile(source: Path, arch: str, cubin: Path, log: Path, defines: tuple[str, ...]) -> None:
    compiler = binaries.nvcc()
    partial = cubin.with_suffix(f".{os.getpid()}.partial")
    flags = (*FLAGS, *defines, "-I", str(ROOT / "csrc"), f"-gencode=arch=compute_{arch},code=sm_{arch}")
    command = [compiler, *flags, "-cubin", str(source), "-o", str(partial)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    log.write_text(json.dumps(done.stdout + done.stderr), encoding="utf-8")
    partial.replace(cubin)


def _remarks(log: Path) -> tuple[str, ...] | None:
    return parse_remarks(json.loads(log.read_text(encoding="utf-8"))) if log.exists() else None


def parse_remarks(log: str) -> tuple[str, ...]:
    """Warnings and advice, for example that wgmma was serialised or a register count ignored."""
    lines = [line.strip() for line in log.splitlines()]
    return tuple(dict.fromkeys(line for line in lines if re.search(r"warning|Potential Performance Loss", line, re.I)))


def _key(source: Path, arch: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\0".join((arch, *flags)).encode())
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
