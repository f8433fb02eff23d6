"""Where a kernel's source can be mutated: synchronisation that can be deleted, index expressions that can be bent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """What is put in at a position; `#` stands for the mutant's number."""

    at: int
    text: str


@dataclass(frozen=True)
class Site:
    file: str
    line: int
    source: str  # the line, stripped
    change: str  # "delete mbar_wait(...)", "a < b -> a <= b"
    kind: str  # "synchronisation" or "index"
    edits: tuple[Edit, ...]

    @property
    def key(self) -> str:
        """Stays the same when lines move."""
        return f"{self.file} | {self.source} | {self.change}"


_SYNCHRONISATION = re.compile(
    r"(?<![\w.>:])(?:[\w\[\]]+(?:\.|->))?"
    r"(?:__syncthreads|__syncwarp|cp_async_commit|cp_async_wait|mbar_\w+|fence_proxy_async|wgmma_fence|wgmma_commit|"
    r"wgmma_wait|cluster_sync|bar_sync\w*|bar_arrive\w*|tma_store_commit|tma_store_wait\w*|grid_dependency_wait|"
    r"wait\w*|release\w*|arrive\w*|commit\w*|advance)"
    r"(?:<[\w\s:,+\-*]*>)?\("
)
_OPERAND = r"(?:[A-Za-z_][\w:]*|\d+u?)(?:(?:\.|->)[A-Za-z_]\w*)*(?:\([^()]*\)|\[[^\[\]]*\])?(?![\w(\[.<])"
_COMPARISON = re.compile(r" (<|<=|>|>=|==|!=) (?=[\w(!*&\-])")
_SUM = re.compile(r"(?<=[\w)\]]) ([+-]) (?=[\w(])")
_ASSIGNED_SUM = re.compile(r" ([+-]=) (?=[\w(])")
_FACTOR = re.compile(rf"(?<=[\w)\]]) (\*|/|%|&|<<|>>) ({_OPERAND})")
_EXCLUSIVE = re.compile(rf"(?<=[\w)\]]) (\^) ({_OPERAND})")
_LOGICAL = re.compile(r" (&&|\|\|) (?=[\w(!])")
_OFF_BY_ONE = {
    "<": ("<=", 1),
    "<=": ("<", -1),
    ">": (">=", -1),
    ">=": (">", 1),
    "==": ("== 1 +", 1),
    "!=": ("!= 1 +", 1),
}
_COMPILE_TIME = re.compile(r"\bconstexpr\b|\btemplate\b|\bstatic_assert\b|\busing\b|\bIK_SHARED\b|\boperator\b")


def masked(text: str) -> str:
    """The text with comments, strings and preprocessor lines blanked, at the same positions."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*'
    return re.sub(pattern, blank, text, flags=re.S | re.M)


def device_functions(text: str) -> Iterator[tuple[int, int]]:
    """The bodies of functions for the device, of masked text, with their parameters."""
    behind = 0
    for marker in re.finditer(r"\bIK_DEVICE\b|\b__global__\b", text):
        if marker.start() < behind:
            continue
        opening = _at_depth_zero(text, marker.end())
        if opening is None or text[opening] == ";":
            continue
        behind = _matching_brace(text, opening)
        yield marker.end(), behind


def _at_depth_zero(text: str, start: int) -> int | None:
    depth = 0
    for position in range(start, len(text)):
        character = text[position]
        if character in "([":
            depth += 1
        elif character in ")]":
            depth -= 1
        elif depth == 0 and character in "{;":
            return position
    return None


def _matching_brace(text: str, opening: int) -> int:
    depth = 0
    for position in range(opening, len(text)):
        if text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return position
    return len(text)


def _statement_end(text: str, open_parenthesis: int) -> int | None:
    """Behind the closing parenthesis of a call that is a whole statement."""
    depth = 0
    for position in range(open_parenthesis, len(text)):
        if text[position] == "(":
            depth += 1
        elif text[position] == ")":
            depth -= 1
            if depth == 0:
                return position + 1 if text[position + 1 : position + 2] == ";" else None
    return None


def _deletions(text: str, begin: int, end: int) -> Iterator[tuple[str, str, list[Edit]]]:
    for call in _SYNCHRONISATION.finditer(text, begin, end):
        before = text[: call.start()].rstrip()[-1:]
        stop = _statement_end(text, call.end() - 1)
        if stop is not None and before in ";{})":
            what = " ".join(text[call.start() : stop].split())
            yield "synchronisation", f"delete {what}", [Edit(call.start(), "ik_mutant(#) ? void() : ")]


def _behind(match: re.Match[str], text: str) -> list[Edit]:
    return [Edit(match.end(), text)]


def _around_operand(match: re.Match[str], function: str) -> list[Edit]:
    return [Edit(match.start(2), f"ik_mutation::{function}<#>("), Edit(match.end(2), ")")]


def _index_changes(text: str, begin: int, end: int) -> Iterator[tuple[str, str, list[Edit]]]:
    for match in _COMPARISON.finditer(text, begin, end):
        other, by = _OFF_BY_ONE[match[1]]
        yield "index", f"{match[1]} to {other}", _behind(match, f"ik_mutation::plus<#>({by}) + ")
    for match in _SUM.finditer(text, begin, end):
        other = "-" if match[1] == "+" else "+"
        yield "index", f"{match[1]} to {other}", _behind(match, "ik_mutation::sign<#>() * ")
    for match in _ASSIGNED_SUM.finditer(text, begin, end):
        yield "index", f"{match[1]} to {match[1]} 1 +", _behind(match, "ik_mutation::plus<#>(1) + ")
    for match in _FACTOR.finditer(text, begin, end):
        change = f"{match[1]} {match[2]} to {match[1]} ({match[2]} + 1)"
        yield "index", change, _around_operand(match, "increment")
    for match in _EXCLUSIVE.finditer(text, begin, end):
        yield "index", f"^ {match[2]} dropped", _around_operand(match, "zero")
    for match in _LOGICAL.finditer(text, begin, end):
        guard = "always" if match[1] == "&&" else "never"
        yield "index", f"right side of {match[1]} dropped", _behind(match, f"ik_mutation::{guard}<#>() | ")


def find_sites(path: Path, name: str) -> list[Site]:
    """All sites of a file, in the order of the text. Several equal changes of one line are numbered."""
    original = path.read_text()
    text = masked(original)
    lines = original.splitlines()
    sites: list[Site] = []
    for begin, end in device_functions(text):
        for kind, change, edits in [*_deletions(text, begin, end), *_index_changes(text, begin, end)]:
            line = text.count("\n", 0, edits[0].at)
            if not _COMPILE_TIME.search(lines[line]):
                sites.append(Site(name, line + 1, lines[line].strip(), change, kind, tuple(edits)))
    return _numbered(sorted(sites, key=lambda site: site.edits[0].at))


def _numbered(sites: list[Site]) -> list[Site]:
    seen: dict[str, int] = {}
    result = []
    for site in sites:
        count = seen[site.key] = seen.get(site.key, 0) + 1
        change = site.change if count == 1 else f"{site.change} ({count})"
        result.append(Site(site.file, site.line, site.source, change, site.kind, site.edits))
    return result


def apply_sites(path: Path, numbered_sites: list[tuple[int, Site]]) -> str:
    """The file with all of these mutations in it, each behind its number."""
    text = path.read_text()
    edits = [(edit, number) for number, site in numbered_sites for edit in site.edits]
    for edit, number in sorted(edits, key=lambda pair: pair[0].at, reverse=True):
        text = text[: edit.at] + edit.text.replace("#", str(number)) + text[edit.at :]
    return text
