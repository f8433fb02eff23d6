"""Predicted time of a kernel from its counts: the choice between algorithms where nothing has been measured.

A kernel takes its bytes at the memory's rate, its products at the tensor cores' and its other instructions at the
schedulers', at the same time or in turn, and every kernel costs a launch. The rates are the data sheets', so that
predictions compare algorithms and are not times to quote.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from .runtime import Device

_LAUNCH_SECONDS = 2.5e-6  # of one kernel in a stream or CUDA graph
_SCHEDULERS = 4  # of a multiprocessor; each issues one warp's instruction a clock


@dataclass(frozen=True)
class Rates:
    """Of a multiprocessor, per clock: bytes from memory, 16-bit multiply-adds; and its clock in Hz."""

    memory: float
    products: float
    clock: float


RATES = {  # by major capability: A100 (SXM, 80 GB), H100 (SXM), B200
    8: Rates(2.04e12 / 108 / 1.41e9, 1024, 1.41e9),
    9: Rates(3.35e12 / 132 / 1.755e9, 2048, 1.755e9),
    10: Rates(8.0e12 / 148 / 1.85e9, 4096, 1.85e9),
}


# Of products by tiles, where configurations of one kernel compete.
TILE_CLOCKS = 1500  # filling the pipeline, epilogue
LAUNCH_CLOCKS = 4000  # of the second stage of split work
L2_BYTES = 40  # a clock and multiprocessor
_STEP_CLOCKS = 180  # at least: a load's latency over the stages


def step_clocks(rows: int, columns: int, depth: int) -> float:
    """Of one step of a tile by descriptors on Hopper: its products or its 16-bit operands from L2.

    Both matter where neither is hidden: the operands' share decides between tiles that products bind alike.
    """
    products = rows * columns * depth / RATES[9].products
    operands = 2 * (rows + columns) * depth / L2_BYTES
    return max(products, operands, _STEP_CLOCKS) + 0.1 * operands


class Overlap(Enum):
    """What a kernel does at the same time."""

    EVERYTHING = "memory, products and other instructions"
    MEMORY = "memory and the rest: the products wait for the instructions that compute their operand"
    NOTHING = "one after the other"


@dataclass(frozen=True)
class Work:
    """Counts of one kernel: bytes of memory, 16-bit multiply-adds, other instructions of a warp, programs."""

    memory: float
    products: float
    instructions: float
    programs: int
    overlap: Overlap = Overlap.EVERYTHING


def seconds(work: Work, device: Device) -> float:
    """Predicted for the whole device, the last wave's idle multiprocessors included."""
    if work.programs == 0:  # an empty batch
        return 0.0
    rates = RATES[max((major for major in RATES if major <= device.capability[0]), default=min(RATES))]
    waves = math.ceil(work.programs / device.multiprocessors)
    busy = work.programs / (waves * device.multiprocessors)
    products = work.products / rates.products
    instructions = work.instructions / _SCHEDULERS
    memory = work.memory / rates.memory
    clocks = {
        Overlap.EVERYTHING: max(memory, products / busy, instructions / busy),
        Overlap.MEMORY: max(memory, (products + instructions) / busy),
        Overlap.NOTHING: memory + (products + instructions) / busy,
    }[work.overlap]
    return clocks / device.multiprocessors / rates.clock + _LAUNCH_SECONDS
