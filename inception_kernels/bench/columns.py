"""The columns that people read: the same on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from inception_kernels.bench.row import OK, OURS, WITHHELD, Row
from inception_kernels.bench.timing import geometric_mean

HEADINGS = ("backend", "layout", "ms", "p10 - p90", "TFLOP/s", "% of roofline", "peak MiB", "error")
NUMERIC = frozenset(HEADINGS[2:])


def by_case(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each case, cases in the order in which they first appear."""
    groups: dict[tuple[str, int, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.key, []).append(row)
    return list(groups.values())


def title(row: Row) -> str:
    """The case of a row in one line: what, precision, pass, work, and what bounds it."""
    precision = f"{row.dtype} autocast" if row.autocast else row.dtype
    work = f"{row.gflop:.3g} GFLOP, {row.gmac:.3g} GMAC" if row.gflop is not None and row.gmac is not None else ""
    name = row.case if row.kind == "network" else f"{row.operator}: {row.case}"
    return f"{name} · batch {row.batch} [{row.shape}] · {precision} · {row.pass_} · {work} · bound by {row.bound}"


def cells(row: Row) -> list[str]:
    """One cell per heading; of a row without a time its status and reason stand in the place of the time."""
    error = "" if row.error is None else f"{row.error:.1e}"
    if row.median_ms is None:
        return [row.backend, row.layout, f"{row.status}: {row.reason}", "", "", "", "", error]
    memory = "" if row.peak_memory_mib is None else f"{row.peak_memory_mib:.1f}"
    if row.memory_method.startswith("resident"):
        memory += "*"
    return [
        row.backend,
        row.layout,
        milliseconds(row.median_ms),
        f"{milliseconds(row.p10_ms)} - {milliseconds(row.p90_ms)}",
        "" if row.tflops is None else f"{row.tflops:.3f}",
        "" if row.roofline_percent is None else f"{row.roofline_percent:.0f}",
        memory,
        error,
    ]


def common_reason(members: Sequence[Row]) -> str:
    """Status and reason where nobody has a time and all for the same reason, else nothing."""
    found = {(row.status, row.reason) for row in members}
    (status, reason), *others = found
    return "" if others or status == OK else f"{status}: {reason}"


def untimed_cases(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Titles of the cases in which nobody has a time, by the reason that all share."""
    found: dict[str, list[str]] = {}
    for members in by_case(rows):
        reason = common_reason(members)
        if reason:
            found.setdefault(reason, []).append(title(members[0]))
    return found


def milliseconds(value: float | None) -> str:
    """Three significant digits and no exponent."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def baselines(rows: Iterable[Row]) -> list[str]:
    """Names of the baselines that any of our rows is compared with, in order of first appearance."""
    names: dict[str, None] = {}
    for row in rows:
        if row.role != OURS:
            names.setdefault(row.backend)
    return list(names)


def speedups(row: Row) -> dict[str, float]:
    """Over each baseline, and over the fastest of them: above 1, this row is faster."""
    if not row.speedup:
        return {}
    return {**row.speedup, "fastest": min(row.speedup.values())}


def speedup_at_floor(row: Row) -> float | None:
    """Over the fastest baseline, if this row's time were its floor."""
    fastest = speedups(row).get("fastest")
    if fastest is None or row.roofline_percent is None:
        return None
    return fastest * 100.0 / row.roofline_percent


def geometric_means(rows: Iterable[Row]) -> list[tuple[str, dict[str, tuple[float, int]]]]:
    """Our speed-ups, one line per kind, pass, dtype and backend: baseline -> (geometric mean, cases)."""
    ours = [row for row in rows if row.role == OURS and row.status == OK]

    def group(row: Row) -> tuple[str, str, str, str]:
        return (row.kind, row.pass_, row.dtype, row.backend)

    lines = []
    for key, members in groupby(sorted(ours, key=group), key=group):
        ratios: dict[str, list[float]] = {}
        for row in members:
            for name, ratio in speedups(row).items():
                ratios.setdefault(name, []).append(ratio)
        means = {name: (geometric_mean(values), len(values)) for name, values in ratios.items()}
        lines.append((f"{key[0]}s, {key[1]}, {key[2]}, {key[3]}", means))
    return lines


def notes(rows: Iterable[Row]) -> list[str]:
    """What a reader of the table has to know."""
    rows = list(rows)
    found = [
        "ms is the median of all turns; every implementation of a case has its turns in alternation with the others.",
        "Speed-up is the baseline's median divided by ours, of the same run: above 1 we are faster.",
        "% of roofline is the floor (arithmetic at the rate of PyTorch's fastest product, measured, or each tensor "
        "moved once at the measured copy bandwidth) divided by the median. Operations are those of the definition: "
        "Winograd's and Strassen's algorithms and windows without their padding take fewer and may pass 100. At the "
        "floor: what the speed-up over the fastest would be at 100.",
        "Error is the largest against float64, relative to the largest magnitude. Our time is withheld where our "
        "error is above twice that of eager PyTorch in the same dtype, a baseline's where it is ten times further off.",
    ]
    if any(row.pass_ == "training" for row in rows):
        found.append("Training is forward and backward, without the optimizer's step.")
    if any(row.memory_method.startswith("resident") for row in rows):
        found.append(
            "* from the process's resident set at the first call: this library does not allocate through torch."
        )
    withheld = sum(row.status == WITHHELD for row in rows)
    if withheld:
        found.append(f"{withheld} time(s) withheld: see the rows.")
    return found


def machine(rows: Iterable[Row]) -> list[str]:
    """Where the rows were measured, and the roofline at the start and at the end of the run."""
    from inception_kernels.roofline import Roofline

    lines: list[str] = []
    seen = []
    for row in rows:
        where = row.environment
        if where is None or where in seen:
            continue
        seen.append(where)
        changed = ", changed" if where.dirty else ""
        installed = ", ".join(f"{name} {version}" for name, version in where.versions.items())
        lines += [
            f"Device: {where.device}, {where.cores} cores, {where.threads} threads; {where.isa}; {where.clock}; "
            f"driver {where.driver}",
            f"Software: commit {where.commit}{changed}, kernels {where.source_hash}; {installed}; "
            f"Python {where.python}",
            "Flags: " + ", ".join(f"{name} {value}" for name, value in where.flags.items()),
            f"Measured {where.started}",
        ]
        if where.roofline_start:
            lines.append(f"Roofline at the start: {Roofline.from_dict(where.roofline_start).summary()}")
        if where.roofline_end:
            lines.append(f"Roofline at the end:   {Roofline.from_dict(where.roofline_end).summary()}")
    return lines
