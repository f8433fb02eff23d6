"""Registers, stack, spills, instructions and the pipes' clocks of compiled Triton kernels, and what they must be."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.cubin_gates.compiler import Cubin
from tools.cubin_gates.report import report
from tools.triton_gates.capture import DEVICES, Launch

# Counted over a whole kernel, as far as it has them.
_TOLD = ("HGMMA", "HMMA", "UTCHMMA", "UTMALDG", "UTMASTG", "LDGSTS", "LDSM", "LDS", "STS", "LDG", "STG", "FFMA")
# The kernels whose operands all come by descriptor: on sm_90 their product has to be wgmma.
_WGMMA_KERNELS = ("_convolution_descriptor",)


@dataclass(frozen=True)
class Reading:
    """`step`: clocks of one turn of the main loop by pipe; on sm_100, whose pipes have no known rates, issue alone."""

    name: str
    arch: str
    constants: dict[str, Any]  # the compile-time arguments
    types: str  # of the arguments by pointer and descriptor, in order
    warps: int
    stages: int
    shared: int  # bytes
    registers: int
    stack: int  # bytes
    local_accesses: int
    instructions: dict[str, int]
    step: dict[str, float]
    wgmma: int  # in the PTX

    @property
    def identity(self) -> tuple[object, ...]:
        """As Launch.identity."""
        return self.name, self.arch, str(self.constants), self.types, self.warps, self.stages

    @property
    def tensor_share(self) -> float | None:
        """Tensor clocks over those of the main loop's busiest pipe; None without a product."""
        tensor = self.step.get("tensor", 0.0)
        return tensor / max(self.step.values()) if tensor else None


def read(launch: Launch, compiled: Any) -> Reading:
    """Of what Triton compiled. Raises MissingTool where nvdisasm or cuobjdump is not there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{launch.name}.cubin"
        path.write_bytes(compiled.asm["cubin"])
        (found,) = report(Cubin(path, "90a" if launch.arch == "90" else launch.arch, path, None))
    opcodes = found.opcodes
    pipes = ("issue",) if launch.arch == "100" else tuple(found.step)
    meta = compiled.metadata
    return Reading(
        name=launch.name,
        arch=launch.arch,
        constants=launch.constants,
        types=launch.types,
        warps=meta.num_warps,
        stages=meta.num_stages,
        shared=meta.shared,
        registers=found.resources.registers,
        stack=found.resources.stack,
        local_accesses=opcodes.get("LDL", 0) + opcodes.get("STL", 0),
        instructions={name: opcodes[name] for name in _TOLD if opcodes.get(name)},
        step={pipe: round(found.step[pipe], 1) for pipe in pipes if found.step.get(pipe)},
        wgmma=compiled.asm["ptx"].count("wgmma.mma_async"),
    )


def violations(reading: Reading) -> Iterator[str]:
    """One sentence each; nothing for a kernel that is as it must be."""
    constants = " ".join(f"{name}={value}" for name, value in reading.constants.items())
    where = f"{reading.name}, sm_{reading.arch}, {reading.warps} warps, {reading.types}, {constants}:"
    if reading.stack or reading.local_accesses:
        yield f"{where} {reading.stack} bytes of stack, {reading.local_accesses} accesses to local memory"
    limit = DEVICES[reading.arch].shared
    if reading.shared > limit:
        yield f"{where} {reading.shared} bytes of shared memory, {limit} allowed"
    if reading.arch == "90" and reading.name in _WGMMA_KERNELS and not reading.wgmma:
        yield f"{where} no wgmma"
