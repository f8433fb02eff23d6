"""Per layer of both networks: what its forward pass launches without a measurement, and how fast it can be at best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from inception_kernels.models.layers import LayerSpec
from inception_kernels.triton._roofline import RATES, Rates
from tools.triton_gates import cases
from tools.triton_gates.capture import DEVICES, Launch
from tools.triton_gates.read import Reading

ARCHITECTURES = ("80", "90")  # those with rates of their instructions
BATCH = 256


@dataclass(frozen=True)
class Bound:
    """One launch: the least clocks of the device by its busiest pipe and by memory."""

    launch: Launch
    reading: Reading
    turns: int  # of the main loop, in one program
    arithmetic: float
    memory: float

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
            for arch in ARCHITECTURES:
                case = cases.Case(layer, BATCH, "forward")
                chosen = [each for each in cases.launches(case, arch) if each.chosen]
                if all(each.identity in known for each in chosen):
                    yield Row(network, layer, arch, tuple(_bound(each, known[each.identity]) for each in chosen))


def _rates(arch: str) -> Rates:
    return RATES[DEVICES[arch].capability[0]]


def _bound(launch: Launch, reading: Reading) -> Bound:
    multiprocessors = DEVICES[launch.arch].multiprocessors
    waves = math.ceil(launch.blocks / multiprocessors)
    turns = _turns(launch)
    arithmetic = waves * turns * max(reading.step.values(), default=0.0)
    return Bound(launch, reading, turns, arithmetic, launch.bytes / (_rates(launch.arch).memory * multiprocessors))


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
