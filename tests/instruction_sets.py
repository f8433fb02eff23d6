"""The instruction sets of the host kernels, in their order."""

from __future__ import annotations

import os
from pathlib import Path

# What /proc/cpuinfo must name for each.
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "portable": (),
    "avx2": ("avx2", "fma"),
    "avx512": ("avx512f", "avx512bw", "avx512vl"),
    "avx512bf16": ("avx512f", "avx512bw", "avx512vl", "avx512_bf16"),
    "amx": ("amx_bf16", "amx_tile"),
}


def cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":")[1].split())
    return set()


def runs_here(isa: str) -> bool:
    """Whether this processor has it; of AMX, on a build that emulates its tiles, everything else."""
    if isa == "amx" and os.environ.get("IK_EMULATED_AMX"):
        return runs_here("avx512bf16")
    return set(ISA_FLAGS[isa]) <= cpu_flags()


def without_bf16_products(isa: str) -> str:
    """The instruction set whose kernels run in its place where no product of bf16 is involved."""
    return "avx512" if isa in ("avx512bf16", "amx") else isa


def without_tiles(isa: str) -> str:
    """The instruction set whose kernels run in its place where tiles do not compute."""
    return "avx512bf16" if isa == "amx" else isa
