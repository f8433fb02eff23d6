"""Compile what an operator would launch: its host code runs on meta tensors, its launches compile and stop there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from inception_kernels.triton import runtime

DEVICES = {
    "80": runtime.Device((8, 0), 108, 166912),
    "90": runtime.Device((9, 0), 132, 232448),
    "100": runtime.Device((10, 0), 148, 232448),
}


@dataclass(frozen=True)
class Compiled:
    """One kernel of one launch; `constants` are its compile-time arguments."""

    name: str
    arch: str
    constants: tuple[tuple[str, Any], ...]
    warps: int
    stages: int
    shared: int  # bytes
    cubin: bytes
    ptx: str

    @property
    def identity(self) -> tuple[str, str, bytes]:
        return self.name, self.arch, hashlib.sha256(self.cubin).digest()


class _Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return int(self.target.arch)

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling(arch: str) -> Iterator[list[Compiled]]:
    """Inside, launches of Triton kernels compile for this architecture and are appended to the list."""
    compiled: list[Compiled] = []
    original: Any = JITFunction.run

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        kernel = original(self, *arguments, grid=grid, warmup=True, **keywords)
        constants = tuple((name, value) for name, value in keywords.items() if name.isupper())
        meta = kernel.metadata
        compiled.append(
            Compiled(
                self.fn.__name__, arch, constants, meta.num_warps, meta.num_stages, meta.shared,
                kernel.asm["cubin"], kernel.asm["ptx"],
            )
        )  # fmt: skip
        return kernel

    device = DEVICES[arch]
    drivers: Any = driver
    before, before_device = drivers._active, runtime.without_gpu
    drivers.set_active(_Driver(10 * device.capability[0] + device.capability[1]))
    runtime.without_gpu = device
    JITFunction.run = run
    try:
        yield compiled
    finally:
        JITFunction.run = original
        drivers._active, runtime.without_gpu = before, before_device
