"""`inception_kernels` over the CUDA operators' own bodies and launchers, their kernels executed on the host.

As a pytest plugin (`-p hosted_operators`, in a process of its own) it puts a library in the place of the CPU extension
whose operators are those of the CUDA extension, on CPU tensors. What is not exercised: streams, the caching allocator.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import host_cuda
import pytest
import torch

from build_backend import build_ext, sources

# Kernels of everything but what replaces PyTorch and the driver.
_REPLACED = {"runtime.cpp", "module.cpp", "device_properties.cu"}
_FLAGS = [
    *("-std=c++20", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas", "-Wno-psabi"),
    f"-I{host_cuda.CSRC}",
    f"-isystem{host_cuda.cuda_include()}",
]


def library() -> Path:
    """The library, built where there is none of these sources."""
    files = [file.path for file in sources.cuda_sources(host_cuda.ROOT) if file.path.name not in _REPLACED]
    kernels = [host_cuda.ROOT / path for path in files if path.suffix == ".cu"]
    glue = [host_cuda.ROOT / path for path in files if path.suffix == ".cpp"]
    of_ops = ("ops.cpp", "cpu/isa.cpp", "cpu/empty.cpp", "cpu/memory.cpp")
    glue += [host_cuda.CSRC / name for name in (*of_ops, "host_cuda/operators/module.cpp")]
    host_cuda.BUILD.mkdir(parents=True, exist_ok=True)
    jobs = [
        *((path, ["-x", "c++", *_FLAGS, "-ffp-contract=off", "-O2", *host_cuda.vector_flags()]) for path in kernels),
        *((path, [*_FLAGS, "-O1", *build_ext.DEFINES, *_torch_includes()]) for path in glue),
        *((path, [*_FLAGS, "-O3"]) for path in host_cuda.runtime_sources() if path.parent.name != "common"),
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: host_cuda.compile_object(*job), jobs))
    return _link(objects)


def _torch_includes() -> list[str]:
    torch_headers = Path(torch.__file__).parent / "include"
    return [f"-isystem{folder}" for folder in (torch_headers, sysconfig.get_path("include"))]


def _link(objects: list[Path]) -> Path:
    key = hashlib.sha256("\0".join(f"{path}{host_cuda.digest(path)}" for path in objects).encode()).hexdigest()[:16]
    target = host_cuda.BUILD / f"operators-{key}.so"
    with host_cuda.locked(target):
        if not target.exists():
            libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch", "-ltorch_cpu", "-ldl", "-lpthread"]
            command = [*host_cuda.compiler(), "-shared", "-o", str(target), *map(str, objects), *libraries]
            subprocess.run(command, check=True)
    return target


class Hosted:
    """The library in this process."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.ik_reports.restype = ctypes.c_char_p

    def context(self, sm: int, multiprocessors: int = 4, allow_tf32: bool = False) -> None:
        self._library.ik_set_context(sm, multiprocessors, ctypes.c_bool(allow_tf32))

    def execution(self, enabled: bool) -> None:
        """Whether kernels that are launched are executed; without, what is left is the host's part of a call."""
        self._library.ik_set_execution(ctypes.c_bool(enabled))

    def reports(self) -> str:
        """What the kernels' executions complained of since the last call."""
        return self._library.ik_reports().decode()


def _can_run_cuda(x: torch.Tensor | None = None, *_: object) -> str | None:
    return "float64 runs on the reference backend" if x is not None and x.dtype == torch.float64 else None


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    path = library()
    assert "inception_kernels" not in sys.modules, "the library has to come before the package"
    sys.modules["inception_kernels._C"] = host_cuda.load_module("_C", path)
    from inception_kernels import backends

    backends._predicates["cuda"] = _can_run_cuda
    backends._predicates["cpu"] = lambda *_: "the CUDA operators are in the place of the host's"
    for operator in (
        "conv2d_bn_act",
        "separable_conv2d",
    ):  # only the host's kernels know it, and a GPU's x is not theirs
        importlib.import_module(f"inception_kernels.ops.{operator}").float32_weights = lambda *_: {}
    global hosted
    hosted = Hosted(path)


hosted: Hosted
