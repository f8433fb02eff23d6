"""Everything known about the kernels of a cubin, as data and as text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tools.cubin_gates import control_flow, launches, pipes
from tools.cubin_gates.annotations import Annotation, read_annotations
from tools.cubin_gates.compiler import ROOT, Cubin
from tools.cubin_gates.control_flow import Flow, Loop
from tools.cubin_gates.disassembly import Instruction, Kernel, Resources, disassemble, resources
from tools.cubin_gates.names import demangle
from tools.cubin_gates.occupancy import RESERVED_SHARED, blocks_per_multiprocessor

_MAIN_LOOP_FMAS = 16  # a loop with so many multiply-adds counts as a main loop even without tensor instructions


@dataclass(frozen=True)
class LoopReport:
    name: str
    file: str
    line: int
    depth: int
    warps: float
    trips: float
    opcodes: dict[str, int]
    clocks: dict[str, float]  # by pipe: one iteration of `warps` warps, per sub-partition

    @property
    def instructions(self) -> int:
        return sum(self.opcodes.values())


@dataclass(frozen=True)
class KernelReport:
    source: Path
    arch: str
    mangled: str
    name: str
    resources: Resources
    threads: int | None
    opcodes: dict[str, int]
    loops: tuple[LoopReport, ...]
    step: dict[str, float]  # clocks by pipe of one step: the sum of the named loops, else of the main loop
    remarks: tuple[str, ...]
    register_limits: tuple[int, ...] = ()  # that warpgroups give themselves with setmaxnreg

    @property
    def local_accesses(self) -> int:
        return self.opcodes.get("LDL", 0) + self.opcodes.get("STL", 0)

    @property
    def static_shared(self) -> int:
        """Without what the system takes of it on sm_90."""
        reserved = RESERVED_SHARED if self.arch.startswith("90") else 0
        return max(self.resources.shared - reserved, 0)

    @property
    def dynamic_shared(self) -> int | None:
        """The most that launchers have asked for; None where that is not recorded."""
        return launches.dynamic_shared(self.arch, self.name)

    def blocks(self, dynamic_shared: int) -> int | None:
        if self.threads is None:
            return None
        shared = self.static_shared + dynamic_shared
        return blocks_per_multiprocessor(self.arch, self.resources.registers, self.threads, shared)


def report(cubin: Cubin) -> list[KernelReport]:
    kernels = disassemble(cubin.path)
    usage = resources(cubin.path)
    names = demangle([kernel.name for kernel in kernels])
    return [
        _kernel_report(cubin, kernel, usage[kernel.name], name) for kernel, name in zip(kernels, names, strict=True)
    ]


def _kernel_report(cubin: Cubin, kernel: Kernel, usage: Resources, name: str) -> KernelReport:
    flow = control_flow.analyse(kernel)
    warps = (kernel.max_threads or 128) / 32
    loops = [_loop_report(flow, loop, cubin.arch, warps) for loop in flow.loops]
    loops += _unrolled(flow, cubin.arch, warps)
    reachable = [each for block in flow.order for each in flow.instructions(block)]
    return KernelReport(
        source=cubin.source,
        arch=cubin.arch,
        mangled=kernel.name,
        name=name,
        resources=usage,
        threads=kernel.max_threads,
        opcodes=_count(reachable),
        loops=tuple(loops),
        step=_step(loops),
        remarks=tuple(each for each in cubin.remarks or () if kernel.name in each or "'" not in each),
        register_limits=tuple(_register_limit(each) for each in reachable if each.name == "USETMAXREG"),
    )


def _loop_report(flow: Flow, loop: Loop, arch: str, block_warps: float) -> LoopReport:
    path = flow.heaviest_path(loop, lambda each: _weight(each, arch))
    annotation = _annotation(flow, loop)
    file, line = _position(flow, loop) if annotation is None else (annotation.file, annotation.line)
    warps = block_warps if annotation is None or annotation.warps is None else annotation.warps
    return LoopReport(
        name=annotation.name if annotation else "",
        file=_relative(file),
        line=line,
        depth=sum(loop.blocks < outer.blocks for outer in flow.loops),
        warps=warps,
        trips=annotation.trips if annotation else 1.0,
        opcodes=_count(path),
        clocks=pipes.of_block(pipes.total(path, arch), warps),
    )


def _register_limit(instruction: Instruction) -> int:
    return int(instruction.text.split()[-1], 16)


def _unrolled(flow: Flow, arch: str, block_warps: float) -> list[LoopReport]:
    """Named loops of the source that are none in the machine code: all their instructions."""
    left = {found for loop in flow.loops for found in [_annotation(flow, loop)] if found}
    instructions = [each for block in flow.order for each in flow.instructions(block)]
    files = {file for each in instructions for file, _ in each.lines}
    named = [found for file in sorted(files) for found in read_annotations(Path(file)) if found not in left]
    reports = []
    for found in named:
        body = [each for each in instructions if _is_inside(each, found)]
        if not body:
            continue
        warps = block_warps if found.warps is None else found.warps
        clocks = pipes.of_block(pipes.total(body, arch), warps)
        place = (found.name, _relative(found.file), found.line)
        reports.append(LoopReport(*place, 1, warps, 1.0, _count(body), clocks))
    return reports


def _is_inside(instruction: Instruction, found: Annotation) -> bool:
    return any(file == found.file and found.line <= line <= found.last_line for file, line in instruction.lines)


def _weight(instruction: Instruction, arch: str) -> tuple[float, ...]:
    return pipes.clocks(instruction, arch).get("tensor", 0.0), 1.0


def _step(loops: list[LoopReport]) -> dict[str, float]:
    named: dict[str, LoopReport] = {}
    # The last of a name is the heaviest: a loop around it may begin at the same statement.
    for loop in sorted(loops, key=lambda loop: (loop.clocks["tensor"], loop.clocks["issue"])):
        if loop.name:
            named[loop.name] = loop
    chosen = list(named.values()) or _main_loop(loops)
    return {pipe: sum(loop.clocks[pipe] * loop.trips for loop in chosen) for pipe in pipes.PIPES}


def _main_loop(loops: list[LoopReport]) -> list[LoopReport]:
    """Without names: the loop that keeps the tensor cores longest, else the one with the most multiply-adds."""
    found = sorted(loops, key=lambda loop: (loop.clocks["tensor"], _multiply_adds(loop), loop.depth))
    return found[-1:]


def _multiply_adds(loop: LoopReport) -> int:
    return loop.opcodes.get("FFMA", 0) + loop.opcodes.get("HFMA2", 0)


def _annotation(flow: Flow, loop: Loop) -> Annotation | None:
    """The nearest comment whose loop statement this loop's own instructions come from."""
    own = [each for block in loop.own_blocks() for each in flow.instructions(block)]
    latch = flow.kernel.instructions[flow.blocks[loop.latch].last]
    header = flow.instructions(loop.header)[:1]
    for lines in (latch.lines, *(each.lines for each in header)):
        for found in _named(lines):
            return found
    inner = {position for each in loop.inner for position in _positions(flow, each)}
    counts: Counter[Annotation] = Counter(
        found for each in own for found in _named(each.lines) if (found.file, found.line) not in inner
    )
    return counts.most_common(1)[0][0] if counts else None


def _named(lines: tuple[tuple[str, int], ...]) -> list[Annotation]:
    return [each for file, line in lines for each in read_annotations(Path(file)) if each.line == line]


def _positions(flow: Flow, loop: Loop) -> set[tuple[str, int]]:
    return {line for block in loop.blocks for each in flow.instructions(block) for line in each.lines}


def _position(flow: Flow, loop: Loop) -> tuple[str, int]:
    latch = flow.kernel.instructions[flow.blocks[loop.latch].last]
    return latch.lines[0] if latch.lines else ("", 0)


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(ROOT)) if path.is_absolute() and path.is_relative_to(ROOT) else path.name


def _count(instructions: list[Instruction]) -> dict[str, int]:
    counts = Counter(each.name for each in instructions)
    return dict(counts.most_common())


def is_main(loop: LoopReport) -> bool:
    return loop.clocks["tensor"] > 0 or _multiply_adds(loop) >= _MAIN_LOOP_FMAS or bool(loop.name)
