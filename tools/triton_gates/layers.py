"""Per layer of both networks: what its forward pass launches without a measurement, and how fast it can be at best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from inception_kernels.models.layers import LayerSpec
from inception_kernels.triton._roofline import RATES, Rates
from tools.triton_gates import cases
from tools.triton_gates.capture import DEVICES, Launch
from tools.triton_gates.read import Reading

BATCH = 256


@dataclass(frozen=True)
class Bound:
    """One launch: the least clocks of the device by its busiest pipe and by memory.

    On sm_100 the pipes are the schedulers, and the tensor cores at their peak.
    """

    launch: Launch
    reading: Reading
    turns: int  # of the main loop, for one tile
    pipe: str  # the busiest
    arithmetic: float
    memory: float

    @property
    def by(self) -> str:
        if self.memory > self.arithmetic:
            return "memory"
        return "products" if self.pipe == "tensor" else "instructions"

    @property
    def clocks(self) -> float:
        return max(self.arithmetic, self.memory)


@dataclass(frozen=True)
class Row:
    """One layer on one architecture; `share` of the tensor cores' peak at most, all its kernels together."""

    network: str
    layer: LayerSpec
    arch: str
    bounds: tuple[Bound, ...]

    @property
    def microseconds(self) -> float:
        return sum(each.clocks for each in self.bounds) / _rates(self.arch).clock * 1e6

    @property
    def share(self) -> float:
        products = self.layer.macs(BATCH) / (_rates(self.arch).products * DEVICES[self.arch].multiprocessors)
        return products / sum(each.clocks for each in self.bounds)


def rows(readings: Iterable[Reading]) -> Iterator[Row]:
    """In bfloat16; layers with a kernel that is not among the readings are left out."""
    known = {each.identity: each for each in readings}
    for network in cases.NETWORKS:
        for layer in cases.distinct_layers(network):
            for arch in DEVICES:
                case = cases.Case(layer, BATCH, "forward")
                chosen = [each for each in cases.launches(case, arch) if each.chosen]
                if all(each.identity in known for each in chosen):
                    yield Row(network, layer, arch, tuple(_bound(each, known) for each in chosen))


def _rates(arch: str) -> Rates:
    return RATES[DEVICES[arch].capability[0]]


def _bound(launch: Launch, known: Mapping[tuple[object, ...], Reading]) -> Bound:
    reading = known[launch.identity]
    multiprocessors, rates = DEVICES[launch.arch].multiprocessors, _rates(launch.arch)
    waves = math.ceil(launch.blocks / multiprocessors)
    turns = _turns(launch)
    program = {"issue": 0.0, **{pipe: turns * clocks for pipe, clocks in reading.step.items()}}
    if launch.constants.get("AHEAD"):
        # Its loop goes on over several tiles; the epilogue, which is part of it, comes once a tile.
        plain = known[_without(launch.identity, "AHEAD")].step
        program = {pipe: clocks + (turns - 1) * plain.get(pipe, 0.0) for pipe, clocks in reading.step.items()}
    if launch.arch == "100":
        program["tensor"] = turns * _products(launch) / rates.products
    pipe = max(program, key=lambda pipe: program[pipe])
    tiles = math.ceil(launch.sizes["TILES"] / launch.blocks) if launch.constants.get("AHEAD") else 1
    arithmetic = waves * tiles * program[pipe]
    return Bound(launch, reading, turns, pipe, arithmetic, launch.bytes / (rates.memory * multiprocessors))


def _without(identity: tuple[object, ...], constant: str) -> tuple[object, ...]:
    """Of the same kernel compiled without this option."""
    name, arch, constants, *rest = identity
    return name, arch, str(constants).replace(f"'{constant}': True", f"'{constant}': False"), *rest


def _products(launch: Launch) -> int:
    """Multiply-adds of a turn of the main loop; 0 for kernels without a product."""
    of = launch.constants
    if launch.name == "_convolution":
        return int(of["BLOCK_M"] * of["BLOCK_K"] * of["BLOCK_C"])
    if launch.name == "_convolution_descriptor":
        return int(of["BLOCK_M"] * (of["BLOCK_K0"] + of["BLOCK_K1"]) * of["BLOCK_C"])
    if launch.name == "separable_patches":
        patches = of["IMAGES"] * of["ACROSS"] * of["DOWN"]
        return int(patches * of["PATCH_H"] * of["PATCH_W"] * of["BLOCK_K"] * of["BLOCK_C"])
    return 0


def _turns(launch: Launch) -> int:
    """Of the main loop, where this knows the kernel's; 1 for kernels whose time is their memory's."""
    sizes, constants = launch.sizes, launch.constants
    if launch.name in ("_convolution", "_convolution_descriptor") and constants["SPLIT"]:
        return sizes["EACH"]
    if launch.name == "_convolution_descriptor":
        return sizes["R"] * sizes["S"] * math.ceil(sizes["C"] / constants["BLOCK_C"])
    if launch.name == "_convolution":
        taps, channels = sizes["TAPS_H"] * sizes["TAPS_W"], sizes["C"] * constants["C_UNIT"]
        if constants["FLAT_C"]:
            return math.ceil(taps * channels / constants["BLOCK_C"])
        return taps * math.ceil(channels / constants["BLOCK_C"])
    if launch.name == "separable_patches":
        return math.ceil(sizes["C"] * constants["C_UNIT"] / constants["BLOCK_C"])
    if launch.name == "depthwise_rows":
        return sizes["ROWS"] + constants["R"] - 1
    return 1
