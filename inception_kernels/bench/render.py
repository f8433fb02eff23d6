"""README tables from committed rows, between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`.

Where there is no row the table says "not measured"; a row whose kernels have changed since says "stale".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from inception_kernels.bench import columns, report
from inception_kernels.bench.row import NOT_APPLICABLE, OK, OURS, Environment, Row
from inception_kernels.bench.timing import geometric_mean

Draw = Callable[[Sequence[Row], str], Iterator[str]]
Table = Callable[[Sequence[Row], str], list[str]]

NOT_MEASURED = "not measured"
_MARKED = re.compile(r"(<!-- bench:(?P<name>[a-z-]+) -->\n).*?(<!-- /bench:(?P=name) -->)", re.DOTALL)


def render(text: str, rows: Sequence[Row], hashes: Mapping[str, str]) -> str:
    """`text` with every marked table made anew from `rows`.

    Args:
        hashes: of the kernel sources as they are now, per device family ("cpu", "cuda").

    Raises:
        ValueError: a marker names a table that does not exist, or has no end.
    """
    opened = re.findall(r"<!-- bench:([a-z-]+) -->", text)
    unknown = [name for name in opened if name not in TABLES]
    if unknown:
        raise ValueError(f"expected tables out of {', '.join(TABLES)}, got {', '.join(unknown)}")
    closed = [match.group("name") for match in _MARKED.finditer(text)]
    if closed != opened:
        raise ValueError(f"expected an end <!-- /bench:NAME --> after each of {', '.join(opened)}, got {closed}")

    def fill(match: re.Match[str]) -> str:
        family, draw = TABLES[match.group("name")]
        own = [row for row in rows if row.environment is not None and row.environment.device_type == family]
        body = "\n".join(draw(own, hashes.get(family, ""))).strip() or NOT_MEASURED
        return f"{match.group(1)}{body}\n{match.group(3)}"

    return _MARKED.sub(fill, text)


def update(readme: Path, rows: Sequence[Row], hashes: Mapping[str, str], check: bool = False) -> bool:
    """Render into the file, or with `check` only compare. Returns whether the file was up to date."""
    before = readme.read_text(encoding="utf-8")
    after = render(before, rows, hashes)
    if not check and after != before:
        readme.write_text(after, encoding="utf-8")
    return after == before


def is_stale(row: Row, current: str) -> bool:
    """Whether the kernels that the row measured have changed since."""
    return row.environment is not None and row.environment.source_hash != current


def _summary(rows: Sequence[Row], current: str) -> Iterator[str]:
    """One line per network, batch and dtype: what each way to use the package gains over two baselines.

    Only of the kernels as they are, unless nothing has been measured since they changed; the last time counts.
    """
    ours = [row for row in rows if row.kind == "network" and row.role == OURS and row.speedup]
    fresh = [row for row in ours if not is_stale(row, current)]
    # Inference and training are measured one after the other, with a commit between them maybe.
    runs: dict[tuple[str, str], list[Row]] = {}
    last: dict[tuple[str, str], Environment] = {}
    for where, members in sorted(_by_environment(fresh or ours), key=lambda group: group[0].started):
        same = (_installation(where), where.source_hash)
        runs.setdefault(same, []).extend(members)
        last[same] = where
    for same, members in runs.items():
        heading = _heading(last[same])
        ways = sorted({(row.pass_, row.backend) for row in members})
        body = []
        for network, batch, dtype in sorted({(row.case, row.batch, row.dtype) for row in members}):
            found = {
                (row.pass_, row.backend): row
                for row in members
                if (row.case, row.batch, row.dtype) == (network, batch, dtype)
            }
            body.append([network, str(batch), dtype, *(_gain(found.get(way), current) for way in ways)])
        headings = ["network", "batch", "dtype", *(_way(*way) for way in ways)]
        yield from _section(heading, report.table(headings, body))


def _gain(row: Row | None, current: str) -> str:
    if row is None:
        return NOT_MEASURED
    over = columns.speedups(row)
    stale = " (stale)" if is_stale(row, current) else ""
    return f"{_ratio(over.get('channels_last')) or '-'} / {_ratio(over['fastest'])}{stale}"


def _way(pass_: str, backend: str) -> str:
    """How a user gets this row: what the harness calls `inception_kernels` is a swapped model."""
    way = backend.removeprefix("inception_kernels").lstrip(":") or "swap"
    return f"`{way}`, {'training step' if pass_ == 'training' else pass_}"


def _networks(rows: Sequence[Row], current: str) -> Iterator[str]:
    """One line per network, pass, batch and dtype: our time, each baseline's, and the ratio to the fastest."""
    return _folded("network", _network_table, rows, current)


def _network_table(members: Sequence[Row], current: str) -> list[str]:
    names = [name for name in columns.baselines(members) if any(r.backend == name and r.status == OK for r in members)]
    ours_names = sorted({row.backend for row in members if row.role == OURS})
    several = len(ours_names) > 1
    body = []
    for case in columns.by_case(members):
        by_name = {row.backend: row for row in case}
        for ours in (row for row in case if row.role == OURS):
            if several and ours.status == NOT_APPLICABLE:
                continue
            fastest = columns.speedups(ours).get("fastest")
            body.append(
                [
                    ours.case,
                    ours.pass_,
                    str(ours.batch),
                    f"{ours.dtype} autocast" if ours.autocast else ours.dtype,
                    *(_time(by_name.get(name)) for name in names),
                    *([ours.backend] if several else []),
                    f"**{_time(ours)}**" + (" (stale)" if is_stale(ours, current) else ""),
                    "" if ours.roofline_percent is None else f"{ours.roofline_percent:.0f}",
                    _ratio(fastest),
                    _ratio(columns.speedup_at_floor(ours)),
                ]
            )
    headings = ["network", "pass", "batch", "dtype", *(f"{name} ms" for name in names)]
    headings += ["ours", "ms"] if several else [f"{ours_names[0]} ms" if ours_names else "ours ms"]
    headings += ["% of roofline", "over the fastest", "at the floor"]
    return report.table(headings, body)


def _operators(rows: Sequence[Row], current: str) -> Iterator[str]:
    """One line per operator, pass, batch and dtype: geometric means over its layers, and how many of them we lose."""
    return _folded("operator", _operator_table, rows, current)


def _operator_table(members: Sequence[Row], current: str) -> list[str]:
    ours = [row for row in members if row.role == OURS and row.backend not in _of_networks_only(members)]
    timed = [row for row in ours if row.speedup]
    names = list(dict.fromkeys(name for row in timed for name in columns.speedups(row)))
    body = []
    for key in dict.fromkeys((row.operator, row.pass_, row.batch, row.dtype, row.backend) for row in ours):
        group = [row for row in timed if (row.operator, row.pass_, row.batch, row.dtype, row.backend) == key]
        if not group:
            body.append([key[0], key[1], str(key[2]), key[3], NOT_MEASURED, *[""] * (len(names) + 1)])
            continue
        ratios = {name: [columns.speedups(r)[name] for r in group if name in columns.speedups(r)] for name in names}
        lost = sum(ratio < 1.0 for ratio in ratios["fastest"])
        stale = " (stale)" if any(is_stale(row, current) for row in group) else ""
        body.append(
            [
                key[0],
                key[1],
                str(key[2]),
                key[3],
                f"{len(group)}{stale}",
                *(f"{geometric_mean(values):.2f}x" if values else "" for values in ratios.values()),
                str(lost),
            ]
        )
    headings = ["operator", "pass", "batch", "dtype", "layers", *(f"over {name}" for name in names), "slower in"]
    return report.table(headings, body)


def _of_networks_only(rows: Sequence[Row]) -> set[str]:
    """Backends that take no single layer: no line of theirs would ever have a time."""
    refused = {row.backend for row in rows if row.status == NOT_APPLICABLE}
    return refused - {row.backend for row in rows if row.status == OK}


def _machine(rows: Sequence[Row], current: str) -> Iterator[str]:
    yield from (f"- {line}" for line in columns.machine(rows))


def _folded(kind: str, table: Table, rows: Sequence[Row], current: str) -> Iterator[str]:
    """A table per environment. Those of earlier kernels are folded away where there are any of the present ones."""
    groups = _by_environment(row for row in rows if row.kind == kind)
    present: list[str] = []
    earlier: list[str] = []
    for where, members in groups:
        lines = earlier if is_stale(members[0], current) else present
        lines += _section(_heading(where), table(members, current))
    if present and earlier:
        earlier = ["<details><summary>Measured with earlier kernels (stale)</summary>", "", *earlier, "</details>"]
    yield from present + earlier


def _by_environment(rows: Iterable[Row]) -> list[tuple[Environment, list[Row]]]:
    groups: list[tuple[Environment, list[Row]]] = []
    for row in rows:
        assert row.environment is not None
        for where, members in groups:
            if where == row.environment:
                members.append(row)
                break
        else:
            groups.append((row.environment, [row]))
    return groups


def _installation(where: Environment) -> str:
    kernels = where.isa.split(",")[0]
    cores = f", {where.threads} threads, {kernels}" if where.device_type == "cpu" else f", driver {where.driver}"
    return f"{where.device}{cores}, torch {where.versions.get('torch')}"


def _heading(where: Environment) -> str:
    return f"{_installation(where)}, {where.started[:10]}, commit {where.commit}:"


def _section(heading: str, lines: Sequence[str]) -> list[str]:
    return [heading, "", *lines, ""]


def _time(row: Row | None) -> str:
    if row is None:
        return NOT_MEASURED
    return columns.milliseconds(row.median_ms) if row.median_ms is not None else row.status


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


TABLES: dict[str, tuple[str, Draw]] = {
    "summary-cpu": ("cpu", _summary),
    "summary-gpu": ("cuda", _summary),
    "networks-cpu": ("cpu", _networks),
    "networks-gpu": ("cuda", _networks),
    "operators-cpu": ("cpu", _operators),
    "operators-gpu": ("cuda", _operators),
    "machine-cpu": ("cpu", _machine),
    "machine-gpu": ("cuda", _machine),
}
