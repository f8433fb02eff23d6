"""Load the compiled operators. Without them the package works on the reference backend, and says once why."""

from __future__ import annotations

import importlib
import warnings

import torch  # noqa: F401  (the extensions link its libraries and find them already loaded)

from .source_hash import build_info


def _load(name: str) -> str | None:
    """Import an extension, which registers its operators. Returns None, or the reason why it is not there."""
    try:
        importlib.import_module(f"inception_kernels.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"inception_kernels.{name}":
            raise
        why = build_info().get("why_not_cuda") if name == "_C_cuda" else None
        return f"this installation was built without {name}" + (f": {why}" if why else "")
    except ImportError as error:
        return f"{name} does not load: {error}"
    return None


reason: str | None = _load("_C")
available: bool = reason is None

cuda_reason: str | None = _load("_C_cuda") if available else reason
cuda_available: bool = cuda_reason is None

if not available:
    warnings.warn(
        f"inception_kernels runs on the reference backend only: {reason}. "
        "Build the kernels with `pip install .` (README, Install).",
        RuntimeWarning,
        stacklevel=2,
    )
