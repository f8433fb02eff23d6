"""Which CUDA kernels the sources have, and where committed results say that they ran.

Needs neither torch nor the package, so that the build can load this file by its path and record both for an installed
package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_COUNTED = re.compile(r'"(\w+\.(?:forward|backward)\.cuda_\w+)"')
_KERNEL = re.compile(r"\b\w+\.(?:forward|backward)\.cuda_\w+")
_VERDICTS = {"right": True, "ok": True, "wrong": False, "withheld": False}  # by a row's status
_SOURCES = {".cu", ".cuh", ".cpp", ".h"}


def kernel_names(root: Path) -> list[str]:
    """The names under which the kernels in csrc/cuda count themselves, sorted."""
    files = [path for path in (root / "csrc" / "cuda").rglob("*") if path.suffix in _SOURCES]
    return sorted({name for path in files for name in _COUNTED.findall(path.read_text(encoding="utf-8"))})


def hardware_runs(root: Path) -> list[dict[str, Any]]:
    """Runs on GPUs whose results were right: `kernel`, `sm` (the GPU's architecture), `device`, `source_hash`.

    They come from the JSON files in benchmarks/results: rows of `bench`, and of the correctness step of `make gpu`. A
    kernel that was wrong in one call of these sources on this device has no run there.
    """
    right: set[_Run] = set()
    wrong: set[_Run] = set()
    for path in sorted((root / "benchmarks" / "results").glob("*/*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and isinstance(document.get("rows"), list):
            for run, is_right in _runs(document):
                (right if is_right else wrong).add(run)
    return [run._asdict() for run in sorted(right - wrong)]


class _Run(NamedTuple):
    kernel: str
    sm: int
    device: str
    source_hash: str


def _runs(document: dict[str, Any]) -> Iterator[tuple[_Run, bool]]:
    """Every kernel of every row that has a verdict."""
    checked = document.get("hardware")  # correctness: one machine for all rows
    for row in document["rows"]:
        if checked is not None:
            names, hardware = row.get("kernels", {}), (checked["sm"], checked["device"], checked["source_hash"])
        else:
            environment = document["environments"][row["environment"]]
            architecture = re.search(r"\bsm_(\d+)", environment["isa"])
            if environment["device_type"] != "cuda" or architecture is None:
                continue
            names = _KERNEL.findall(row["ran"])
            hardware = (int(architecture[1]), environment["device"], environment["source_hash"])
        if row.get("status") in _VERDICTS:
            for name in filter(_KERNEL.fullmatch, names):
                yield _Run(name, *hardware), _VERDICTS[row["status"]]
