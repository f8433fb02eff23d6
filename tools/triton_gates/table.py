"""The committed table: what became of each kernel, grouped, with the hash of the sources that it belongs to."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import triton

from tools.triton_gates.read import Reading

ROOT = Path(__file__).resolve().parent.parent.parent
PATH = ROOT / "benchmarks" / "triton_kernels.md"
_COLUMNS = "| kernel | sm | tile | warps | variants | registers | shared memory, bytes | spills | tensor share |"


def source_hash() -> str:
    """Of every file of the backend."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "inception_kernels" / "triton").glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def recorded_hash(path: Path = PATH) -> str | None:
    found = re.search(r"sources ([0-9a-f]{16})", path.read_text()) if path.exists() else None
    return found[1] if found else None


def write(readings: Sequence[Reading], path: Path = PATH) -> None:
    path.write_text(render(readings))


def render(readings: Sequence[Reading]) -> str:
    """One row per kernel, architecture and tile: the range over its variants (windows, epilogues, sizes)."""
    groups: dict[tuple[str, ...], list[Reading]] = defaultdict(list)
    for reading in readings:
        groups[_group(reading)].append(reading)
    rows = [_row(key, groups[key]) for key in sorted(groups)]
    return "\n".join(
        [
            "# The Triton kernels as compiled",
            "",
            f"Triton {triton.__version__}, sources {source_hash()}; written by `python -m tools.triton_gates --table`.",
            "Every layer of Inception-v3 and Xception, bf16, forward, training and backward, with every tile that",
            "may be chosen. Tensor share: tensor clocks over those of the main loop's busiest pipe, lowest to highest.",
            "",
            _COLUMNS,
            "|" + "---|" * _COLUMNS.count(" | ") + "---|",
            *rows,
            "",
        ]
    )


def _group(reading: Reading) -> tuple[str, ...]:
    kernel = reading.kernel
    constants = dict(kernel.constants)
    tile = "x".join(
        str(constants[name])
        for name in ("BLOCK_M", "BLOCK_K", "BLOCK_K0", "BLOCK_K1", "BLOCK_C", "BLOCK", "PIXELS", "CHANNELS", "ELEMENTS")
        if name in constants
    )
    return kernel.name, kernel.arch, tile, str(kernel.warps)


def _row(key: tuple[str, ...], readings: Sequence[Reading]) -> str:
    name, arch, tile, warps = key
    shares = [each.tensor_share for each in readings if each.tensor_share is not None]
    share = f"{min(shares):.2f} - {max(shares):.2f}" if shares else "-"
    registers = f"{min(each.registers for each in readings)} - {max(each.registers for each in readings)}"
    shared = max(each.kernel.shared for each in readings)
    spills = sum(bool(each.stack or each.local_accesses) for each in readings)
    return f"| {name} | {arch} | {tile} | {warps} | {len(readings)} | {registers} | {shared} | {spills} | {share} |"
