"""Comments beside the loops of a kernel that say what the cubin does not: who executes them, and how often.

    // gate: depthwise warps=2 trips=7
    for (...)

names the next loop. A step is what the kernel repeats, for example one chunk of channels: in it `warps` warps execute
the loop `trips` times each (both default: all warps of the block, once). A loop that the compiler has unrolled counts
as all that is left of it. The pipes of a kernel are the sum over its named loops.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_COMMENT = re.compile(r"//\s*gate:\s*(?P<name>\w+)(?P<rest>[^\n]*)")
_OPTION = re.compile(r"(\w+)=([\d./]+)")


@dataclass(frozen=True)
class Annotation:
    file: str
    line: int  # of the loop statement
    last_line: int  # of its body
    name: str
    warps: float | None = None
    trips: float = 1.0


@cache
def read_annotations(path: Path) -> tuple[Annotation, ...]:
    """Raises ValueError on an option that there is not."""
    if not path.is_file():
        return ()
    rows = path.read_text(encoding="utf-8").splitlines()
    found = []
    for index, row in enumerate(rows):
        comment = _COMMENT.search(row)
        if comment is None:
            continue
        is_alone = row.strip().startswith("//")
        options = {key: _number(value) for key, value in _OPTION.findall(comment["rest"])}
        unknown = set(options) - {"warps", "trips"}
        if unknown:
            raise ValueError(f"{path}:{index + 1}: expected warps= or trips=, got {', '.join(sorted(unknown))}")
        line = _next_statement(rows, index + 1) if is_alone else index
        warps = options.get("warps")
        last = _last_line(rows, line)
        found.append(Annotation(str(path), line + 1, last + 1, comment["name"], warps, options.get("trips", 1.0)))
    return tuple(found)


def _number(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


def _next_statement(rows: list[str], start: int) -> int:
    texts = [row.strip() for row in rows]
    return next(index for index in range(start, len(rows)) if texts[index] and not texts[index].startswith(("//", "#")))


def _last_line(rows: list[str], first: int) -> int:
    """Of a loop statement: where the braces that it opens are closed, or the line itself."""
    depth = 0
    for index in range(first, len(rows)):
        code = rows[index].split("//")[0]
        depth += code.count("{") - code.count("}")
        if depth <= 0:
            return index
    return len(rows) - 1
