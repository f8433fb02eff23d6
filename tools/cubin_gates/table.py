"""The committed table of all kernels, benchmarks/cuda_kernels.md: python -m tools.cubin_gates --table"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tools.cubin_gates import binaries, compiler, gates, pipes, report
from tools.cubin_gates.compiler import ROOT
from tools.cubin_gates.report import KernelReport

PATH = ROOT / "benchmarks" / "cuda_kernels.md"

_HEADER = """# CUDA kernels as compiled

Read from the machine code, without a GPU; `make gates` writes this file, and the tests hold it to the sources.
Nothing here was measured. Clocks are lower bounds for one step of the main loop (one chunk of channels, as the loops'
comments say): issue slots of each pipe of a multiprocessor's sub-partition, and wavefronts of the memory that all four
share (`memory`: shared memory and L1, with the operands that wgmma reads), without bank conflicts or latency.
"Largest" is the pipe that takes longest, and how long in terms of the tensor cores. Dynamic shared memory is the most
that the launchers have asked for (`tools/cubin_gates/launches.json`; empty: not recorded); blocks per multiprocessor as
registers and shared memory allow.
"""
_LIMITS = """
What the tests hold the pipes to, in terms of the tensor cores. A kernel goes by the first line that names it; those
that none names are free: on sm_90a the mma.sync kernels are what runs where the Hopper kernels decline.
"""
_COLUMNS = ("kernel", "registers", "threads", "static shared", "dynamic shared", "blocks", *pipes.PIPES, "largest")


def reports() -> list[KernelReport]:
    """Every kernel of csrc/cuda for every architecture it is compiled for."""
    jobs = [(source, arch) for source in compiler.kernel_sources() for arch in compiler.architectures(source)]
    return [kernel for cubin in compiler.cubins(jobs) for kernel in report.report(cubin)]


def source_hash() -> str:
    """Of everything that the kernels are made of."""
    digest = hashlib.sha256("\0".join(compiler.FLAGS).encode())
    files = {path for source in compiler.kernel_sources() for path in compiler.read_files(source)}
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def nvcc_version() -> str:
    text = subprocess.run([binaries.nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", text)
    return match[1] if match else "unknown"


def render(kernels: Sequence[KernelReport], version: str) -> str:
    lines = [_HEADER, f"nvcc {version}, sources {source_hash()}, {len(kernels)} kernels.", _LIMITS]
    lines += [*_markdown([("kernels", "architecture", "most", "which"), *map(_limit, gates.RATIOS)]), ""]
    for source in dict.fromkeys(kernel.source for kernel in kernels):
        for arch in dict.fromkeys(kernel.arch for kernel in kernels if kernel.source == source):
            members = [kernel for kernel in kernels if kernel.source == source and kernel.arch == arch]
            lines += [f"## {source.name}, sm_{arch}", "", *_table(members), ""]
    return "\n".join(lines)


def recorded() -> dict[str, str]:
    """Version and hash of the committed table; empty strings where there is none."""
    text = PATH.read_text(encoding="utf-8") if PATH.exists() else ""
    match = re.search(r"nvcc (\S+), sources (\w+)", text)
    return {"nvcc": match[1] if match else "", "sources": match[2] if match else ""}


def write(path: Path = PATH) -> None:
    path.write_text(render(reports(), nvcc_version()), encoding="utf-8")


def _table(kernels: Sequence[KernelReport]) -> list[str]:
    return _markdown([_COLUMNS, *(_row(kernel) for kernel in sorted(kernels, key=lambda each: each.name))])


def _markdown(rows: Sequence[tuple[str, ...]]) -> list[str]:
    marks = ("---", *("---:" for _ in rows[0][1:]))
    return [f"| {' | '.join(row)} |" for row in (rows[0], marks, *rows[1:])]


def _limit(ratio: gates.Ratio) -> tuple[str, ...]:
    return f"`{ratio.kernel}`".replace("|", "\\|"), f"sm_{ratio.arch}", f"{ratio.most:.1f}", ratio.why


def _row(kernel: KernelReport) -> tuple[str, ...]:
    dynamic = kernel.dynamic_shared
    blocks = kernel.blocks(dynamic or 0)
    largest = ""
    if any(kernel.step.values()):
        largest = pipes.largest(kernel.step)
        largest += f" {gates.ratio(kernel):.2f}" if kernel.step["tensor"] else ""
    return (
        f"`{kernel.name}`",
        str(kernel.resources.registers),
        str(kernel.threads or ""),
        str(kernel.static_shared),
        "" if dynamic is None else str(dynamic),
        str(blocks if blocks is not None else ""),
        *(f"{kernel.step[pipe]:.0f}" if kernel.step[pipe] else "" for pipe in pipes.PIPES),
        largest,
    )
