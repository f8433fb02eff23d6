"""Compilers and the IK_BUILD switch. What is missing is said in one sentence that names the fix."""

from __future__ import annotations

import glob
import os
import platform
import shlex
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import setuptools

OLDEST_SETUPTOOLS = 77  # pyproject.toml asks for it too, but without build isolation nobody reads that

# PTX of 8.0, not of 9.0a: architecture-specific PTX does not run on later GPUs.
DEFAULT_CUDA_ARCHS = "8.0+PTX;9.0a"
HOPPER = "90a"


@dataclass(frozen=True)
class Toolchain:
    """`cuda` is the reason why there is no CUDA build where `nvcc` is None."""

    cxx: list[str]
    nvcc: str | None
    cuda: str


def build_mode() -> str:
    mode = os.environ.get("IK_BUILD", "auto")
    if mode not in ("auto", "cpu", "cuda"):
        raise SystemExit(f"IK_BUILD must be auto, cpu or cuda, but is {mode!r}.")
    return mode


def require_toolchain() -> Toolchain:
    """The compilers that IK_BUILD asks for; SystemExit with one sentence where one is missing."""
    mode = build_mode()
    cxx = find_cxx()
    if mode == "cpu":
        return Toolchain(cxx, None, "IK_BUILD=cpu")
    nvcc = find_nvcc()
    if nvcc is None and mode == "cuda":
        raise SystemExit(
            "IK_BUILD=cuda needs nvcc, which is neither under CUDA_HOME nor on PATH nor in /usr/local/cuda*: "
            "install the CUDA toolkit, or build with IK_BUILD=cpu."
        )
    return Toolchain(cxx, nvcc, f"nvcc {nvcc}" if nvcc else "nvcc not found")


def require_setuptools() -> None:
    if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
        raise SystemExit(
            f"Building inception_kernels needs setuptools {OLDEST_SETUPTOOLS} or newer, found "
            f"{setuptools.__version__}: pip install -U setuptools, or drop --no-build-isolation."
        )


def find_cxx() -> list[str]:
    if os.name == "nt":
        raise SystemExit("inception_kernels builds on Linux and macOS only: on Windows use WSL.")
    named = os.environ.get("CXX")
    candidates = [named] if named else ["g++", "c++", "clang++"]
    command = next((shlex.split(name) for name in candidates if shutil.which(shlex.split(name)[0])), None)
    if command is None:
        raise SystemExit(
            f"Building inception_kernels needs a C++20 compiler, but found no {' or '.join(candidates)}: "
            "install one (apt-get install g++) or name it in CXX."
        )
    if not Path(python_include(), "Python.h").exists():
        raise SystemExit(
            f"Building inception_kernels needs Python's headers, but {python_include()} has no Python.h: "
            "install them (apt-get install python3-dev)."
        )
    return command


def find_nvcc() -> str | None:
    """CUDA_HOME, PATH, then CUDA's usual place. torch is not asked: a CPU build of it knows no CUDA."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=os.path.join(home, "bin"))
    usual = ["/usr/local/cuda/bin", *sorted(glob.glob("/usr/local/cuda-*/bin"), reverse=True)]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(usual))


def cuda_codes() -> list[str]:
    """What TORCH_CUDA_ARCH_LIST ("8.0;9.0a+PTX") asks for, by default "sm_80", "compute_80" (PTX) and "sm_90a"."""
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHS
    codes = []
    for arch in archs.replace(" ", ";").split(";"):
        number = arch.removesuffix("+PTX").replace(".", "")
        if not number:
            continue
        if not number[:2].isdigit():
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST must hold numbers (8.0;9.0a+PTX), but has {arch!r}.")
        codes.append(f"sm_{number}")
        if arch.endswith("+PTX"):
            codes.append(f"compute_{number}")
    return codes


def cuda_arch_flags(file: Path) -> list[str]:
    """nvcc's -gencode flags: sm_90a alone for files of Hopper's own instructions, else TORCH_CUDA_ARCH_LIST."""
    codes = [f"sm_{HOPPER}"] if "_sm90" in file.stem else cuda_codes()
    return [f"-gencode=arch=compute_{code.rpartition('_')[2]},code={code}" for code in codes]


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def python_include() -> str:
    return sysconfig.get_path("include")
