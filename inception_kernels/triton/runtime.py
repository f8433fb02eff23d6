"""What of Triton this process has; imports nothing of Triton itself."""

from __future__ import annotations

import importlib.util
import os


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors; Triton reads the variable when they are defined."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing() -> str | None:
    """None where Triton is installed, else the reason."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    return None
