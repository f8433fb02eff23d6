"""Which sources make which extension, with which extra flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_HOST_ONLY = {"parallel_torch"}  # of csrc/common


@dataclass(frozen=True)
class Source:
    path: Path  # relative to the repository root
    flags: tuple[str, ...] = ()


def read_isa_flags(path: Path) -> dict[str, tuple[str, ...]]:
    """Parse `folder: flags` lines, from the lowest instruction set to the highest; `#` starts a comment."""
    flags: dict[str, tuple[str, ...]] = {}
    if not path.exists():
        return flags
    for number, raw in enumerate(path.read_text().splitlines(), start=1):
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        folder, colon, rest = line.partition(":")
        if not colon:
            raise SystemExit(f"{path}:{number}: expected 'folder: flags', found {raw!r}.")
        flags[folder.strip()] = tuple(rest.split())
    return flags


def cpu_sources(root: Path, x86: bool) -> list[Source]:
    """Sources of `_C`. Folders to which `csrc/cpu/isa_flags.txt` gives flags are built where `x86` only.

    The baseline comes first, then the folders in the order of the file: of an inline function that several
    objects define the linker keeps the first, which must be the one that every machine can run.
    """
    csrc = root / "csrc"
    isa_flags = read_isa_flags(csrc / "cpu" / "isa_flags.txt")
    baseline = [*csrc.glob("*.cpp"), *(csrc / "common").glob("*.cpp")]
    isa: dict[str, list[Path]] = {folder: [] for folder in isa_flags}
    for path in (csrc / "cpu").rglob("*.cpp"):
        isa.get(path.parent.relative_to(csrc / "cpu").as_posix(), baseline).append(path)
    sources = [Source(path.relative_to(root)) for path in sorted(baseline)]
    for folder in built_isas(isa_flags, x86):
        sources += [Source(path.relative_to(root), isa_flags[folder]) for path in sorted(isa[folder])]
    return sources


def built_isas(isa_flags: dict[str, tuple[str, ...]], x86: bool) -> list[str]:
    """Folders without flags are portable; the flags name x86 instruction sets."""
    return [folder for folder, flags in isa_flags.items() if x86 or not flags]


def cuda_sources(root: Path) -> list[Source]:
    """Sources of `_C_cuda`: csrc/cuda, the operators that it has kernels of, and what all operators share.

    None where there is no kernel.
    """
    csrc = root / "csrc"
    kernels = sorted((csrc / "cuda").glob("*.cu"))
    if not kernels:
        return []
    operators = sorted(csrc / f"{kernel.stem}.cpp" for kernel in kernels if (csrc / f"{kernel.stem}.cpp").exists())
    shared = [*operators, *(path for path in sorted((csrc / "common").glob("*.cpp")) if path.stem not in _HOST_ONLY)]
    return [Source(path.relative_to(root)) for path in (*kernels, *sorted((csrc / "cuda").glob("*.cpp")), *shared)]
