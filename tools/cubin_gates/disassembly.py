"""nvdisasm's listing as instructions with labels and source lines."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tools.cubin_gates import binaries

_SECTION = re.compile(r"^//-+ \.(?P<kind>text|nv\.info)\.(?P<kernel>\S+)\s+-+")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_LINE = re.compile(r'//## File "([^"]+)", line (\d+)')
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?P<text>[^/].*?)\s*;")
_PREDICATE = re.compile(r"^@(!?U?P\w+)\s+")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_USAGE = re.compile(r"Function (?P<name>\S+):\s+REG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:(?P<shared>\d+)")
_THREADS = ("EIATTR_MAX_THREADS", "EIATTR_REQNTID")  # at most, as __launch_bounds__ says, or exactly, as Triton does
_WORD = re.compile(r"\.word\s+0x([0-9a-f]+)")


@dataclass(frozen=True)
class Instruction:
    text: str  # without its predicate
    predicate: str
    lines: tuple[tuple[str, int], ...]  # file and line; then where that was inlined, innermost first

    @property
    def opcode(self) -> str:
        """With its modifiers: "LDS.128"."""
        return self.text.split()[0]

    @property
    def name(self) -> str:
        """The opcode without modifiers: "LDS"."""
        return self.opcode.split(".")[0]

    @property
    def target(self) -> str | None:
        match = _TARGET.search(self.text)
        return match[1] if match else None

    @property
    def is_executed(self) -> bool:
        return self.predicate != "!PT"


@dataclass(frozen=True)
class Resources:
    """Bytes per thread of stack; bytes of static shared memory, on sm_90 with the 1024 that the system takes."""

    registers: int
    stack: int
    shared: int


@dataclass
class Kernel:
    name: str  # mangled
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    max_threads: int | None = None


def disassemble(cubin: Path) -> list[Kernel]:
    """Raises RuntimeError with nvdisasm's own message where it cannot read the file."""
    command = [binaries.nvdisasm(), "-gi", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return parse(done.stdout)


def resources(cubin: Path) -> dict[str, Resources]:
    """By mangled name."""
    command = [binaries.cuobjdump(), "-res-usage", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    return {
        match["name"]: Resources(int(match["registers"]), int(match["stack"]), int(match["shared"]))
        for match in _USAGE.finditer(text)
    }


def parse(listing: str) -> list[Kernel]:
    kernels: dict[str, Kernel] = {}
    kind, current = "", Kernel("")
    lines: list[tuple[str, int]] = []
    after_lines = False  # the next source line starts a new chain of inlining
    wants_threads = False
    for row in listing.splitlines():
        section = _SECTION.match(row)
        if section or row.startswith("//---"):
            kind = section["kind"] if section else ""
            if section:
                current = kernels.setdefault(section["kernel"], Kernel(section["kernel"]))
            lines, wants_threads = [], False
        elif kind == "nv.info":
            if "EIATTR_" in row:
                wants_threads = any(name in row for name in _THREADS)
            word = _WORD.search(row)
            if wants_threads and word:
                current.max_threads = int(word[1], 16)
                wants_threads = False
        elif kind == "text":
            source = _LINE.search(row)
            if source:
                lines = [] if after_lines else lines
                after_lines = False
                position = (source[1], int(source[2]))
                lines += [position] if position not in lines else []
                continue
            after_lines = True
            label = _LABEL.match(row)
            instruction = _INSTRUCTION.match(row)
            if label:
                current.labels[label[1]] = len(current.instructions)
            elif instruction:
                current.instructions.append(_instruction(instruction["text"], tuple(lines)))
    return [kernel for kernel in kernels.values() if kernel.instructions]


def _instruction(text: str, lines: tuple[tuple[str, int], ...]) -> Instruction:
    predicate = _PREDICATE.match(text)
    if predicate is None:
        return Instruction(text, "", lines)
    return Instruction(text[predicate.end() :], predicate[1], lines)
