"""Find the PyTorch to build against. It is not imported: the build needs its headers and its libraries."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REQUIREMENT = "torch>=2.11,<2.16"
OLDEST, NEWEST = (2, 11), (2, 15)

_REPORT_TORCH = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s and s.origin else '')"


@dataclass(frozen=True)
class Torch:
    """An installed PyTorch: its package folder, its version and its CUDA's, as written in `torch/version.py`."""

    folder: Path
    version: str
    cuda: str | None = None

    @property
    def include(self) -> Path:
        return self.folder / "include"

    @property
    def lib(self) -> Path:
        return self.folder / "lib"


def find_torch() -> Torch | None:
    """The torch of this interpreter, or of the environment that an isolated build installs into, or None.

    Raises SystemExit with one sentence where the torch found is of a version this package cannot use.
    """
    folder = _visible_torch() or _target_environment_torch()
    if folder is None:
        return None
    written = (folder / "version.py").read_text()
    match = re.search(r"""__version__\s*=\s*['"]([^'"]+)""", written)
    if match is None:
        raise SystemExit(f"{folder / 'version.py'} names no version: reinstall torch.")
    version = match[1]
    if not OLDEST <= tuple(int(part) for part in version.split(".")[:2]) <= NEWEST:
        raise SystemExit(f"inception_kernels needs torch 2.11 to 2.15, found {version}: pip install '{REQUIREMENT}'.")
    cuda = re.search(r"""^cuda\b[^=]*=\s*['"]([^'"]+)""", written, re.MULTILINE)
    return Torch(folder, version, cuda[1] if cuda else None)


def require_torch() -> Torch:
    """`find_torch`, or SystemExit with one sentence that names the fix."""
    torch = find_torch()
    if torch is None:
        raise SystemExit(explain_missing())
    return torch


def explain_missing() -> str:
    if inside_uv_isolation():
        return (
            "uv builds in an environment of its own that cannot see your torch: install torch, setuptools "
            "and ninja first, then repeat the command with --no-build-isolation."
        )
    return f"Building inception_kernels needs PyTorch: pip install '{REQUIREMENT}', then try again."


def inside_uv_isolation() -> bool:
    """uv tells its children of itself; pip's isolation under `uv run` has pip's overlay on the path."""
    return "UV" in os.environ and not any("pip-build-env-" in entry for entry in sys.path)


def _visible_torch() -> Path | None:
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def _target_environment_torch() -> Path | None:
    # pip hides the target's site-packages through PYTHONPATH: a child that ignores PYTHON* sees them again.
    child = subprocess.run(
        [sys.executable, "-E", "-c", _REPORT_TORCH],
        cwd=sys.prefix,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    origin = child.stdout.strip()
    return Path(origin).parent if origin else None
