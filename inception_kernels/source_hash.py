"""One hash per family of kernels over its sources: a benchmark row of a changed kernel shows as stale.

Needs neither torch nor the package, so that the build can load this file by its path.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

BUILD_INFO = "_build_info.json"

_SUFFIXES = {".h", ".cpp", ".cu", ".cuh", ".inl", ".txt"}  # .txt: the compile flags per folder
_FOLDERS = {
    "cpu": ("csrc", "csrc/common", "csrc/cpu"),
    "cuda": ("csrc", "csrc/common", "csrc/cuda", "inception_kernels/triton"),
    "triton": ("inception_kernels/triton",),
}
_RECURSIVE = {"csrc/cpu", "csrc/cuda", "inception_kernels/triton"}


def kernel_sources(root: Path, family: str) -> list[Path]:
    """The files whose change makes the measurements of a family ("cpu", "cuda" or "triton") stale, sorted."""
    found: set[Path] = set()
    for name in _FOLDERS[family]:
        folder = root / name
        suffixes = {".py"} if name.startswith("inception_kernels") else _SUFFIXES
        files = folder.rglob("*") if name in _RECURSIVE else folder.glob("*")
        found.update(path for path in files if path.suffix in suffixes)
    return sorted(found)


def source_hashes(root: Path) -> dict[str, str]:
    """A hash per family of the sources under `root`, the folder that holds csrc/ and inception_kernels/."""
    hashes = {}
    for family in _FOLDERS:
        digest = hashlib.sha256()
        for path in kernel_sources(root, family):
            text = path.read_bytes().replace(b"\r\n", b"\n")
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + text + b"\0")
        hashes[family] = digest.hexdigest()[:16]
    return hashes


def build_info(package: Path | None = None) -> dict[str, object]:
    """What the build wrote about itself; empty where the package was never built."""
    path = (package or Path(__file__).parent) / BUILD_INFO
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def current_hashes(package: Path | None = None) -> dict[str, str]:
    """The hashes of the sources in a checkout, or those recorded by the build in an installed package.

    Raises:
        FileNotFoundError: neither the sources nor a record of them is there.
    """
    package = package or Path(__file__).parent
    root = package.parent
    if (root / "csrc" / "ops.cpp").exists():
        return source_hashes(root)
    recorded = build_info(package).get("source_hashes")
    if not isinstance(recorded, dict):
        raise FileNotFoundError(
            f"expected the kernel sources in {root / 'csrc'} or their hashes in {package / BUILD_INFO}: "
            "install again with `pip install .`"
        )
    return {str(family): str(value) for family, value in recorded.items()}


def built_from_other_sources(package: Path | None = None) -> bool:
    """Whether the sources of a checkout have changed since its extension was built."""
    recorded = build_info(package).get("source_hashes")
    return isinstance(recorded, dict) and recorded != current_hashes(package)
