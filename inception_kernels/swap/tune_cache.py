"""Measurements on disk, one JSON file per user: `$IK_CACHE_DIR/swap_tune.json`."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from pathlib import Path
from typing import Any

logger = logging.getLogger("inception_kernels")

_FIELDS = ("fused_ms", "original_ms")


def cache_file() -> Path:
    folder = os.environ.get("IK_CACHE_DIR") or Path.home() / ".cache" / "inception_kernels"
    return Path(folder) / "swap_tune.json"


def _valid(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(name), int | float) and math.isfinite(entry[name]) and entry[name] > 0 for name in _FIELDS
    )


def read() -> dict[str, dict[str, float]]:
    """Every usable entry. An unreadable file counts as empty, with a warning: it will be replaced."""
    path = cache_file()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s is not a readable cache of measurements (%s): measuring again", path, error)
        return {}
    if not isinstance(content, dict):
        logger.warning("%s holds a %s, expected an object: measuring again", path, type(content).__name__)
        return {}
    return {key: entry for key, entry in content.items() if _valid(entry)}


def add(entries: dict[str, dict[str, float]]) -> None:
    """Merge into the file in one atomic step: readers and other writers never see half a file."""
    path = cache_file()
    merged = {**read(), **entries}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(merged, file, indent=1, sort_keys=True)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        logger.warning("measurements are not kept: %s cannot be written (%s); set IK_CACHE_DIR", path, error)
