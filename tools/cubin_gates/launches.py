"""The most dynamic shared memory that kernels are launched with, as the launchers asked for it on the host:

python -m pytest tests -k "cuda and layers" --all-layers --record-launches tools/cubin_gates/launches.json

The kernels are not executed then, and what compares their results is expected to fail.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tools.cubin_gates.names import demangle
from tools.cubin_gates.occupancy import LIMITS

PATH = Path(__file__).with_name("launches.json")
ARCHITECTURES = {LIMITS[arch].block_shared: arch for arch in ("80", "90a")}


def record(path: Path, most_shared: Mapping[tuple[str, int], int]) -> None:
    """Adds bytes by mangled name and by what a block of the device may have; keeps the larger ones."""
    found = read(path)
    names = demangle([kernel for kernel, _ in most_shared])
    for name, ((_, limit), shared) in zip(names, most_shared.items(), strict=True):
        if limit in ARCHITECTURES:
            known = found.setdefault(ARCHITECTURES[limit], {})
            known[name] = max(shared, known.get(name, 0))
    ordered = {arch: dict(sorted(kernels.items())) for arch, kernels in sorted(found.items())}
    path.write_text(json.dumps(ordered, indent=1) + "\n")


def read(path: Path) -> dict[str, dict[str, int]]:
    return json.loads(path.read_text()) if path.exists() else {}


@cache
def recorded() -> dict[str, dict[str, int]]:
    return read(PATH)


def dynamic_shared(arch: str, name: str) -> int | None:
    """Of a kernel by its demangled name; None where nobody has launched it."""
    return recorded().get(arch, {}).get(name)
