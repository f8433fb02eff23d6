"""A kernel's report for people."""

from __future__ import annotations

from tools.cubin_gates import pipes
from tools.cubin_gates.report import KernelReport, LoopReport, is_main

_TELLING = (
    "HGMMA", "HMMA", "UTMALDG", "UTMASTG", "LDGSTS", "LDSM", "STSM", "LDS", "STS", "LDG", "STG", "FFMA", "HFMA2",
    "IMAD", "SHFL", "BAR", "LDL", "STL", "CALL",
)  # fmt: skip
_MOST_COMMON = 8


def kernel_text(kernel: KernelReport, dynamic_shared: int, all_loops: bool) -> str:
    usage = kernel.resources
    blocks = kernel.blocks(dynamic_shared)
    spills = f"{usage.stack} B stack, {kernel.local_accesses} LDL/STL"
    shared = f"shared {kernel.static_shared} + {dynamic_shared} B"
    threads = f"{kernel.threads} threads" if kernel.threads else "no __launch_bounds__"
    rows = [
        f"{kernel.name}  [sm_{kernel.arch}]",
        f"  {usage.registers} registers, {spills}, {shared}, {threads}"
        + (f", {blocks} blocks per SM" if blocks is not None else ""),
        "  " + ", ".join(f"{name} {kernel.opcodes[name]}" for name in _TELLING if kernel.opcodes.get(name)),
    ]
    for loop in kernel.loops:
        if all_loops or is_main(loop):
            rows += _loop_rows(loop)
    rows.append(f"  step: {clocks_text(kernel.step)}")
    return "\n".join(rows) + "\n"


def _loop_rows(loop: LoopReport) -> list[str]:
    indent = "  " * (loop.depth + 1)
    common = ", ".join(f"{name} {count}" for name, count in list(loop.opcodes.items())[:_MOST_COMMON])
    trips = f" x {loop.trips:g}" if loop.trips != 1 else ""
    return [
        f"{indent}loop {loop.name or '-'} {loop.file}:{loop.line}, {loop.instructions} instructions, "
        f"{loop.warps:g} warps{trips}: {common}",
        f"{indent}  {clocks_text(loop.clocks)}",
    ]


def clocks_text(clocks: dict[str, float]) -> str:
    largest = pipes.largest(clocks)
    text = ", ".join(f"{pipe} {clocks[pipe]:.0f}" for pipe in pipes.PIPES if clocks[pipe])
    tensor = clocks["tensor"]
    ratio = f" ({clocks[largest] / tensor:.2f} x tensor)" if tensor and largest != "tensor" else ""
    return f"clocks: {text}; largest: {largest}{ratio}"
