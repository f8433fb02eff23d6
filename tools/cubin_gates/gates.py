"""What every kernel must be: without spills, with the instructions and the busiest pipe that it was written for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tools.cubin_gates import pipes
from tools.cubin_gates.compiler import SM80, SM90A
from tools.cubin_gates.occupancy import LIMITS
from tools.cubin_gates.report import KernelReport

_MOST_REGISTERS = 65536


@dataclass(frozen=True)
class Ratio:
    """In kernels whose name matches, no pipe may take longer than `most` times the tensor cores."""

    kernel: str
    arch: str
    most: float
    why: str


# The first that matches counts. Kernels with tensor instructions that none of these names have no limit: on sm_90a the
# mma.sync kernels are what runs where the Hopper kernels decline.
RATIOS = (
    Ratio(
        r"(conv2d|asymmetric_pair|weight_gradient).*sm90|Hopper",
        SM90A,
        1.0,
        "dense: tensor cores busy all the time, were there no latency",
    ),
    Ratio(r"conv2d_kernel<.*VectorLoader<TileShape<(128, 128|256, 64)", SM80, 1.0, "dense: the tiles of many pixels"),
    Ratio(
        r"conv2d_kernel<.*VectorLoader",
        SM80,
        1.5,
        "dense, 128 x 64 and 64 x 64, for layers of few tiles: four warps share a tile, so that all four tensor cores "
        "have work, and each of them reads more for it",
    ),
    Ratio(
        r"conv2d_kernel<.*ElementLoader",
        SM80,
        1.9,
        "channels that are no multiple of 8, as the 3 of an image: elements are loaded one by one",
    ),
    Ratio(r"asymmetric_pair_kernel<(Bf16|Fp16|Tf32)", SM80, 1.0, "dense, both halves of the pair"),
    Ratio(r"weight_gradient_kernel<.*true>", SM80, 1.0, "dense: the gradient of the pointwise weight"),
    Ratio(r"weight_gradient_kernel<.*false>", SM80, 1.1, "gathered loads, for channels that are no multiple of 8"),
    Ratio(r"separable_sm90::.*Tile<19, 3, 256>", SM90A, 1.2, "728 -> 728, separable, in clusters of three"),
    Ratio(r"separable::tile_kernel<.*128, 256", SM80, 1.2, "728 -> 728, separable"),
)


def violations(kernel: KernelReport) -> Iterator[str]:
    """One sentence each; nothing for a kernel that is as it must be."""
    where = f"{kernel.source.name}, sm_{kernel.arch}: {kernel.name}"
    usage = kernel.resources
    if usage.stack or kernel.local_accesses:
        yield f"{where} has {usage.stack} bytes of stack and {kernel.local_accesses} accesses to local memory"
    if kernel.threads is None:
        yield f"{where} has no __launch_bounds__"
    elif kernel.threads * usage.registers > _MOST_REGISTERS:
        yield f"{where} needs {kernel.threads} x {usage.registers} registers, of which there are {_MOST_REGISTERS}"
    shared = kernel.static_shared + (kernel.dynamic_shared or 0)
    if shared > LIMITS[kernel.arch].block_shared:
        yield f"{where} has {shared} bytes of shared memory, {LIMITS[kernel.arch].block_shared} allowed"
    yield from (f"{where} {excess}" for excess in _excess_registers(kernel))
    yield from (f"{where}: {remark}" for remark in kernel.remarks)
    yield from (f"{where} {lack}" for lack in _missing_instructions(kernel))
    limit = ratio_limit(kernel)
    if limit is not None and ratio(kernel) > limit.most:
        times = f"{pipes.largest(kernel.step)} takes {ratio(kernel):.2f} times the tensor cores' clocks"
        yield f"{where}: {times}, {limit.most} allowed ({limit.why})"


def ratio(kernel: KernelReport) -> float:
    """The largest pipe's clocks of a step over the tensor cores'."""
    return max(kernel.step.values()) / kernel.step["tensor"] if kernel.step["tensor"] else 0.0


def ratio_limit(kernel: KernelReport) -> Ratio | None:
    if not kernel.step["tensor"]:
        return None
    return next((each for each in RATIOS if each.arch == kernel.arch and re.search(each.kernel, kernel.name)), None)


def _excess_registers(kernel: KernelReport) -> Iterator[str]:
    """What setmaxnreg asks for beyond what the block was launched with: one warpgroup gives, all others take."""
    if not kernel.register_limits or kernel.threads is None:
        return
    warpgroups = kernel.threads // (32 * pipes.WARPS_OF_A_WARPGROUP)
    wanted = (warpgroups - 1) * max(kernel.register_limits) + min(kernel.register_limits)
    if wanted > warpgroups * kernel.resources.registers:
        given = f"{warpgroups} x {kernel.resources.registers}"
        yield f"asks for {wanted} registers a thread of all warpgroups with setmaxnreg, launched with {given}"


def _missing_instructions(kernel: KernelReport) -> Sequence[str]:
    """A product on tensor cores comes with the asynchronous copies of its generation."""
    has = kernel.opcodes.get
    hopper = "_sm90" in kernel.source.stem
    if hopper and (has("HMMA") or (has("HGMMA") and not has("UTMALDG"))):
        return ["has a product without wgmma and TMA"]
    if not hopper and has("HGMMA"):
        return ["has wgmma outside of a *_sm90 file"]
    if not hopper and has("HMMA") and not has("LDGSTS"):
        return ["has a product without cp.async"]
    return []
