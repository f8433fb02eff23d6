"""Registers, stack, spills, instructions and the pipes' clocks of compiled Triton kernels, and what they must be."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.cubin_gates import pipes
from tools.cubin_gates.compiler import Cubin
from tools.cubin_gates.disassembly import disassemble, resources
from tools.cubin_gates.report import report
from tools.triton_gates.capture import Compiled

# Bytes of shared memory that one block may have.
SHARED_LIMIT = {"80": 166912, "90": 232448, "100": 232448}
# The kernel whose operands all come by descriptor: on sm_90 its product has to be wgmma.
_WGMMA_KERNELS = ("_convolution_descriptor",)


@dataclass(frozen=True)
class Reading:
    kernel: Compiled
    registers: int
    stack: int
    local_accesses: int
    tensor_share: float | None  # tensor clocks over those of the busiest pipe in the main loop; None without a product

    @property
    def wgmma(self) -> int:
        return self.kernel.ptx.count("wgmma.mma_async")


def read(kernel: Compiled) -> Reading:
    """Raises MissingTool where nvdisasm or cuobjdump is not there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{kernel.name}.cubin"
        path.write_bytes(kernel.cubin)
        if kernel.arch == "100":  # its tensor instructions have no rates in the tables: resources only
            (usage,) = resources(path).values()
            (listing,) = disassemble(path)
            local = sum(each.name in ("LDL", "STL") for each in listing.instructions)
            return Reading(kernel, usage.registers, usage.stack, local, None)
        (found,) = report(Cubin(path, "90a" if kernel.arch == "90" else kernel.arch, path, None))
    tensor = found.step["tensor"]
    share = tensor / max(found.step[pipe] for pipe in pipes.PIPES) if tensor else None
    return Reading(kernel, found.resources.registers, found.resources.stack, found.local_accesses, share)


def violations(reading: Reading) -> Iterator[str]:
    """One sentence each; nothing for a kernel that is as it must be."""
    kernel = reading.kernel
    constants = " ".join(f"{name}={value}" for name, value in kernel.constants)
    where = f"{kernel.name}, sm_{kernel.arch}, {kernel.warps} warps, {constants}:"
    if reading.stack or reading.local_accesses:
        yield f"{where} {reading.stack} bytes of stack, {reading.local_accesses} accesses to local memory"
    if kernel.shared > SHARED_LIMIT[kernel.arch]:
        yield f"{where} {kernel.shared} bytes of shared memory, {SHARED_LIMIT[kernel.arch]} allowed"
    if kernel.arch == "90" and kernel.name in _WGMMA_KERNELS and not reading.wgmma:
        yield f"{where} no wgmma"
