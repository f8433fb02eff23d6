"""Measurements on disk: one JSON file per kind of measurement and user, in `$IK_CACHE_DIR`."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger("inception_kernels")


def folder() -> Path:
    return Path(os.environ.get("IK_CACHE_DIR") or Path.home() / ".cache" / "inception_kernels")


class TuneCache:
    """The file `name`; `valid` tells which of its entries can be used."""

    def __init__(self, name: str, valid: Callable[[Any], bool]) -> None:
        self.name = name
        self._valid = valid

    @property
    def path(self) -> Path:
        return folder() / self.name

    def read(self) -> dict[str, dict[str, Any]]:
        """Every usable entry. An unreadable file counts as empty, with a warning: it will be replaced."""
        path = self.path
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
        return {key: entry for key, entry in content.items() if self._valid(entry)}

    def add(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Merge into the file in one atomic step: readers and other writers never see half a file."""
        path = self.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _one_writer(path.parent):
                _replace(path, json.dumps({**self.read(), **entries}, indent=1, sort_keys=True))
        except OSError as error:
            logger.warning("measurements are not kept: %s cannot be written (%s); set IK_CACHE_DIR", path, error)


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Others wait, so that what they read is what they replace."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
