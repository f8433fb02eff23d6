"""Blocks of a kernel that fit on one multiprocessor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor; `block_shared` is the most that one block can ask for."""

    threads: int
    blocks: int
    shared: int
    block_shared: int
    registers: int = 65536


RESERVED_SHARED = 1024  # per block, by the system
_REGISTERS_PER_WARP_STEP = 256
_SHARED_STEP = 128

LIMITS = {
    "80": Limits(threads=2048, blocks=32, shared=164 * 1024, block_shared=163 * 1024),
    "86": Limits(threads=1536, blocks=16, shared=100 * 1024, block_shared=99 * 1024),
    "89": Limits(threads=1536, blocks=24, shared=100 * 1024, block_shared=99 * 1024),
    "90a": Limits(threads=2048, blocks=32, shared=228 * 1024, block_shared=227 * 1024),
}


def blocks_per_multiprocessor(arch: str, registers: int, threads: int, shared: int) -> int:
    """`shared` is what the block asks for, static and dynamic; 0 means that the kernel cannot launch."""
    limits = LIMITS[arch]
    if shared > limits.block_shared or threads > 1024:
        return 0
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // _REGISTERS_PER_WARP_STEP) * _REGISTERS_PER_WARP_STEP
    with_reserve = -(-(shared + RESERVED_SHARED) // _SHARED_STEP) * _SHARED_STEP
    return min(
        limits.blocks,
        limits.threads // (warps * 32),
        limits.registers // (per_warp * warps),
        limits.shared // with_reserve,
    )
