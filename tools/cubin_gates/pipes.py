"""Clocks that one warp's instruction occupies each execution pipe: lower bounds, not a simulation.

Rates are those of the CUDA programming guide's table of arithmetic throughput (results per clock and multiprocessor)
and of the tensor cores' peak: 1024 bfloat16 multiply-adds per clock and multiprocessor on sm_80, 2048 on sm_90. An
instruction whose pipe is not documented is booked where it costs more. No bank conflicts, no latencies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tools.cubin_gates.disassembly import Instruction

# Pipes that each of the four sub-partitions of a multiprocessor has, and those that the four share.
PRIVATE = ("issue", "tensor", "fma", "fma_heavy", "alu", "special", "uniform")
SHARED = ("lsu", "memory")
PIPES = (*PRIVATE, *SHARED)
SUB_PARTITIONS = 4
WARPS_OF_A_WARPGROUP = 4

_FMA = {"FFMA", "FMUL", "FADD", "FFMA32I", "FADD32I", "FMUL32I", "HFMA2", "HADD2", "HMUL2", "HFMA2_32I"}
_SPECIAL = {"MUFU", "POPC", "FLO", "BREV", "I2F", "F2I", "F2F", "FRND", "I2I"}
_CONTROL = {
    "BRA", "NOP", "BAR", "EXIT", "RET", "CALL", "JMP", "BRX", "BSSY", "BSYNC", "BREAK", "BMOV", "YIELD", "NANOSLEEP",
    "WARPSYNC", "WARPGROUP", "WARPGROUPSET", "DEPBAR", "LDGDEPBAR", "SYNCS", "FENCE", "MEMBAR", "ERRBAR", "CCTL",
    "CCTLL", "ELECT", "ACQBULK", "PREEXIT", "LEPC", "S2R", "CS2R", "S2UR", "LDC", "B2R", "R2B", "ARRIVES", "UTMALDG",
    "UTMASTG", "UTMAPF", "UTMACMDFLUSH", "UTMACCTL", "UBLKCP", "UBLKRED", "UTMAREDG", "USETMAXREG", "ENDCOLLECTIVE",
    "HGMMA", "QGMMA", "IGMMA", "UCGABAR_ARV", "UCGABAR_WAIT", "UGETNEXTWORKID", "PMTRIG", "RPCMOV", "KILL",
    "GETLMEMBASE",
}  # fmt: skip
_MEMORY = {
    "LDS", "LDSM", "STS", "STSM", "LDG", "LDGSTS", "STG", "LDL", "STL", "LD", "ST", "ATOM", "ATOMS", "ATOMG", "RED",
    "SHFL", "QSPC", "LDGMC", "REDAS", "STAS", "MOVM",
}  # fmt: skip

_HMMA_SHAPES = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4}
_BYTES_PER_CLOCK = 128  # of the memory that holds both L1 and shared memory, per multiprocessor


def clocks(instruction: Instruction, arch: str) -> dict[str, float]:
    """Of the private pipes of one sub-partition, and of the shared ones."""
    name = instruction.name
    found = {"issue": 1.0}
    hopper = arch.startswith("90")
    if name == "HGMMA":
        found.update(_wgmma(instruction))
    elif name == "HMMA":
        found["tensor"] = _mma_clocks(instruction, hopper)
    elif name in _FMA:
        # bfloat16 pairs have half the rate of float16 pairs before Hopper; float32 had half of Hopper's rate.
        slow = name[0] == "F" or "BF16" in instruction.opcode
        found["fma"] = 2.0 if slow and not hopper else 1.0
    elif name == "IMAD":
        found["fma"] = 1.0 if hopper else 2.0
        found["fma_heavy"] = 2.0
    elif name in _SPECIAL:
        found["special"] = 8.0 if name in ("MUFU", "POPC", "FLO", "BREV") else 2.0
    elif name in _MEMORY:
        found["lsu"] = 1.0
        found["memory"] = _wavefronts(instruction)
    elif name in _CONTROL:
        pass
    elif name.startswith("U") or name in ("R2UR", "LDCU"):
        found["uniform"] = 2.0
    else:
        found["alu"] = 2.0
    return found


def total(instructions: Iterable[Instruction], arch: str) -> dict[str, float]:
    found = dict.fromkeys(PIPES, 0.0)
    for each in instructions:
        for pipe, spent in clocks(each, arch).items():
            found[pipe] += spent
    return found


def of_block(per_warp: dict[str, float], warps: float) -> dict[str, float]:
    """Clocks of every pipe when `warps` warps, spread over the sub-partitions, execute it once each."""
    shares = {pipe: 1.0 if pipe in SHARED else 1.0 / SUB_PARTITIONS for pipe in PIPES}
    return {pipe: per_warp[pipe] * warps * shares[pipe] for pipe in PIPES}


def largest(clocks_by_pipe: dict[str, float]) -> str:
    return max(PIPES, key=lambda pipe: clocks_by_pipe[pipe])


def _wgmma(instruction: Instruction) -> dict[str, float]:
    shape = re.search(r"64x(\d+)x(\d+)", instruction.opcode)
    assert shape is not None, instruction.text
    columns, depth = int(shape[1]), int(shape[2])
    element = 4 if "TF32" in instruction.opcode else 2
    per_clock = 1024 // element  # multiply-adds of one sub-partition
    rows_of_a_warp = 64 // WARPS_OF_A_WARPGROUP
    operand_b = columns * depth * element / WARPS_OF_A_WARPGROUP  # read once by the warpgroup
    registers = re.findall(r"(?<![U\w])R\d+", instruction.text)
    has_a_in_registers = len(set(registers)) > 1
    operand_a = 0 if has_a_in_registers else rows_of_a_warp * depth * element
    return {
        "tensor": rows_of_a_warp * columns * depth / per_clock,
        "memory": (operand_a + operand_b) / _BYTES_PER_CLOCK,
    }


def _mma_clocks(instruction: Instruction, hopper: bool) -> float:
    shape = next((size for word, size in _HMMA_SHAPES.items() if f".{word}." in instruction.opcode + "."), None)
    if shape is None:
        raise ValueError(f"expected a tensor instruction of a known shape, got {instruction.text}")
    per_clock = 512 if hopper else 256
    return shape / (per_clock / 2 if "TF32" in instruction.opcode else per_clock)


def _wavefronts(instruction: Instruction) -> float:
    opcode = instruction.opcode
    if instruction.name in ("LDSM", "STSM"):
        return float(opcode.rsplit(".", 1)[1]) if opcode[-1] in "24" else 1.0
    return 4.0 if ".128" in opcode else 2.0 if ".64" in opcode else 1.0
