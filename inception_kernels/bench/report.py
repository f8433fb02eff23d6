"""The report folder: rows.json, rows.csv, report.md, roofline.png and speedup.png."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from inception_kernels.bench import columns
from inception_kernels.bench.row import OURS, Row, flat, from_document, to_document

ROWS = "rows.json"
CORRECTNESS = "correctness.json"


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write everything and return the files. Without matplotlib the Markdown says that there are no plots, and why."""
    folder.mkdir(parents=True, exist_ok=True)
    data, sheet, text = folder / ROWS, folder / "rows.csv", folder / "report.md"
    save(rows, data)
    _write_csv(rows, sheet)
    plots, reason = _write_plots(rows, folder)
    text.write_text(markdown(rows, [plot.name for plot in plots], reason), encoding="utf-8")
    return [data, sheet, text, *plots]


def save(rows: Sequence[Row], path: Path) -> None:
    path.write_text(json.dumps(to_document(rows), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load(path: Path) -> list[Row]:
    """The rows of one file, or of every .json under a folder but the verdicts of correctness that `make gpu` keeps.

    Raises:
        ValueError: a file does not hold rows of this version.
    """
    if path.is_dir():
        files = [each for each in sorted(path.rglob("*.json")) if not each.name.endswith(CORRECTNESS)]
        return [row for each in files for row in load(each)]
    try:
        return from_document(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold benchmark rows: {error}") from error


def markdown(rows: Sequence[Row], plots: Sequence[str] = (), no_plots: str = "") -> str:
    """The whole run as one document."""
    lines = ["# Benchmark", "", *(f"- {line}" for line in columns.machine(rows)), ""]
    means = columns.geometric_means(rows)
    if means:
        names = list(dict.fromkeys(name for _, found in means for name in found))
        body = [
            [label, *(f"{found[name][0]:.2f}x ({found[name][1]})" if name in found else "" for name in names)]
            for label, found in means
        ]
        lines += ["## Geometric mean of our speed-up over each baseline (cases)", ""]
        lines += [*table(["cases", *names], body), ""]
    lines += [f"![{Path(plot).stem}]({plot})\n" for plot in plots]
    if no_plots:
        lines += [f"No plots: {no_plots}", ""]
    for members in columns.by_case(rows):
        if columns.common_reason(members):
            continue
        ours = [row for row in members if row.role == OURS and row.speedup]
        headings = [*columns.HEADINGS, *(f"{row.backend} is faster by" for row in ours)]
        body = []
        for row in members:
            ratios = [f"{mine.speedup[row.backend]:.2f}x" if row.backend in mine.speedup else "" for mine in ours]
            body.append([*columns.cells(row), *ratios])
        lines += [f"### {columns.title(members[0])}", "", *table(headings, body), ""]
    for reason, titles in columns.untimed_cases(rows).items():
        lines += [f"### {len(titles)} cases without any time: {reason}", "", *(f"- {title}" for title in titles), ""]
    lines += [*(f"- {note}" for note in columns.notes(rows)), ""]
    return "\n".join(lines)


def table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; cells that are numbers stand on the right."""
    aligned = ["---:" if heading in columns.NUMERIC or index else "---" for index, heading in enumerate(headings)]
    rows = [headings, aligned, *([cell.replace("|", "\\|") for cell in row] for row in body)]
    return [f"| {' | '.join(row)} |" for row in rows]


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    flattened = [flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flattened for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(flattened)


def _write_plots(rows: Sequence[Row], folder: Path) -> tuple[list[Path], str]:
    try:
        from inception_kernels.bench import plots
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        return [], "matplotlib is not installed: pip install 'inception-kernels[bench]'"
    return plots.write(rows, folder), ""
