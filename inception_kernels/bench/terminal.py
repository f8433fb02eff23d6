"""The table on the terminal, and progress where the terminal is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from inception_kernels.bench import columns
from inception_kernels.bench.harness import Progress, Silent
from inception_kernels.bench.row import OURS, Row

_FILE_WIDTH = 160  # of a pipe or a file, where nothing says how wide it is


class _Bar:
    def __init__(self, bar: RichProgress) -> None:
        self.bar = bar
        self.task = bar.add_task("", total=None)

    def step(self, done: int, total: int, what: str) -> None:
        self.bar.update(self.task, completed=done, total=total, description=what)


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """A bar on a terminal; nothing where the output goes to a file or a pipe."""
    if not console.is_terminal:
        yield Silent()
        return
    shape = (
        SpinnerColumn(),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with RichProgress(*shape, console=console, transient=True) as bar:
        yield _Bar(bar)


def make_console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_FILE_WIDTH)


def show(rows: Sequence[Row], console: Console) -> None:
    """Print one section per case, the geometric means, and what was measured where."""
    for line in columns.machine(rows):
        console.print(escape(line), soft_wrap=True)
    for members in columns.by_case(rows):
        if not columns.common_reason(members):
            console.print()
            console.print(f"[bold]{escape(columns.title(members[0]))}[/bold]", soft_wrap=True)
            console.print(_case_table(members))
    for reason, titles in columns.untimed_cases(rows).items():
        console.print(f"\n[bold]{len(titles)} cases without any time: {escape(reason)}[/bold]", soft_wrap=True)
        for title in titles:
            console.print(f"  {escape(title)}", soft_wrap=True)
    means = columns.geometric_means(rows)
    if means:
        console.print("\n[bold]Geometric mean of our speed-up over each baseline (cases)[/bold]")
        console.print(_means_table(means))
    for note in columns.notes(rows):
        console.print(f"[dim]{escape(note)}[/dim]", soft_wrap=True)


def _case_table(members: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in columns.HEADINGS:
        table.add_column(heading, justify="right" if heading in columns.NUMERIC else "left", max_width=48)
    ours = [row for row in members if row.role == OURS and row.speedup]
    for row in ours:
        table.add_column(f"{row.backend} is faster by", justify="right")
    for row in members:
        ratios = [f"{mine.speedup[row.backend]:.2f}x" if row.backend in mine.speedup else "" for mine in ours]
        table.add_row(*map(escape, [*columns.cells(row), *ratios]), style="bold" if row.role == OURS else None)
    return table


def _means_table(means: list[tuple[str, dict[str, tuple[float, int]]]]) -> Table:
    names = list(dict.fromkeys(name for _, found in means for name in found))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("cases")
    for name in names:
        table.add_column(name, justify="right")
    for label, found in means:
        table.add_row(label, *(f"{found[name][0]:.2f}x ({found[name][1]})" if name in found else "" for name in names))
    return table
