"""Which CUDA kernels the sources have, and where committed results say that they ran.

Needs neither torch nor the package, so that the build can load this file by its path and record both for an installed
package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_COUNTED = re.compile(r'"(\w+\.(?:forward|backward)\.cuda_\w+)"')
_KERNEL = re.compile(r"\b\w+\.(?:forward|backward)\.cuda_\w+")
_SOURCES = {".cu", ".cuh", ".cpp", ".h"}


def kernel_names(root: Path) -> list[str]:
    """The names under which the kernels in csrc/cuda count themselves, sorted."""
    files = [path for path in (root / "csrc" / "cuda").rglob("*") if path.suffix in _SOURCES]
    return sorted({name for path in files for name in _COUNTED.findall(path.read_text(encoding="utf-8"))})


def hardware_runs(root: Path) -> list[dict[str, Any]]:
    """Runs on GPUs whose results were right: `kernel`, `sm` (the GPU's architecture), `device`, `source_hash`.

    They come from the JSON files in benchmarks/results: rows of `bench`, and of the correctness step of `make gpu`.
    """
    found: dict[tuple[str, int, str, str], dict[str, Any]] = {}
    for path in sorted((root / "benchmarks" / "results").glob("*/*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and isinstance(document.get("rows"), list):
            for kernel, hardware in _runs(document):
                run = {"kernel": kernel, **hardware}
                found[kernel, hardware["sm"], hardware["device"], hardware["source_hash"]] = run
    return list(found.values())


def _runs(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    checked = document.get("hardware")  # correctness: one machine for all rows
    for row in document["rows"]:
        if checked is not None:
            names = row.get("kernels", {}) if row.get("status") == "right" else {}
            hardware = {key: checked[key] for key in ("sm", "device", "source_hash")}
        else:
            environment = document["environments"][row["environment"]]
            architecture = re.search(r"\bsm_(\d+)", environment["isa"])
            if environment["device_type"] != "cuda" or row["status"] != "ok" or architecture is None:
                continue
            names = _KERNEL.findall(row["ran"])
            hardware = {
                "sm": int(architecture[1]), "device": environment["device"], "source_hash": environment["source_hash"],
            }  # fmt: skip
        for name in names:
            if _KERNEL.fullmatch(name):
                yield name, hardware
