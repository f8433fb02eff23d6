"""How often each Triton kernel was launched; read through ``inception_kernels.backends.counters``."""

from __future__ import annotations

import threading
from collections import Counter

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def count_kernel(name: str) -> None:
    """Count one launch of ``<operator>.<direction>.triton_<variant>``."""
    with _lock:
        _counts[name] += 1


def counters() -> dict[str, int]:
    with _lock:
        return dict(_counts)


def reset_counters() -> None:
    with _lock:
        _counts.clear()
