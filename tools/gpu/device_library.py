"""Compile a few sources with nvcc into a library that ctypes loads."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from build_backend.toolchain import find_nvcc
from tools.gpu.options import ROOT

_SECONDS = 300


def compile_library(sources: Sequence[Path], library: Path, arch: str, flags: Sequence[str] = ()) -> Path:
    """Raises RuntimeError with nvcc's messages, or where there is no nvcc."""
    compiler = find_nvcc()
    if compiler is None:
        raise RuntimeError("there is no nvcc: install the CUDA toolkit")
    library.parent.mkdir(parents=True, exist_ok=True)
    options = ["-std=c++20", "-O3", "-shared", "-Xcompiler=-fPIC", f"-gencode=arch=compute_{arch},code=sm_{arch}"]
    command = [compiler, *options, *flags, "-I", str(ROOT / "csrc"), *map(str, sources), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return library


def arch_of_device() -> str:
    """As nvcc writes it: with the features of that GPU alone on Hopper."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"
