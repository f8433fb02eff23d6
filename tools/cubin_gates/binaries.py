"""Where the CUDA compiler and the disassembler are, or one sentence about what is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from build_backend.toolchain import find_nvcc


class MissingTool(RuntimeError):
    """A tool is not installed; the message names the fix."""


def nvcc() -> str:
    found = find_nvcc()
    if found is None:
        raise MissingTool("there is no nvcc under CUDA_HOME, on PATH or in /usr/local/cuda*: install the CUDA toolkit")
    return found


def nvdisasm() -> str:
    return _reader("nvdisasm")


def cuobjdump() -> str:
    return _reader("cuobjdump")


def _reader(name: str) -> str:
    """That of the wheel nvidia-cuda-<name>, or the toolkit's own, or the one inside triton's package."""
    for folder in _folders():
        found = shutil.which(name, path=str(folder))
        if found:
            return found
    raise MissingTool(f"there is no {name}: pip install nvidia-cuda-{name} (a few MB), or install a whole CUDA toolkit")


def _folders() -> Iterator[Path]:
    """Newest first: an older disassembler than compiler may not know the file format."""
    yield from _wheel_folders()
    compiler = find_nvcc()
    if compiler is not None:
        yield Path(compiler).parent
    yield from map(Path, os.environ.get("PATH", os.defpath).split(os.pathsep))
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        yield Path(triton.origin).parent / "backends" / "nvidia" / "bin"


def _wheel_folders() -> Iterator[Path]:
    namespace = importlib.util.find_spec("nvidia")
    for location in (namespace.submodule_search_locations or []) if namespace else []:
        yield from sorted(Path(location).glob("cu*/bin"), reverse=True)
