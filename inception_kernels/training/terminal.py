"""A run on the terminal: a line per epoch, and a bar where the terminal can redraw it."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from inception_kernels.training.log import Row


class Terminal:
    """Prints one line per epoch; a progress bar over all steps only on a terminal, not into a file or a pipe.

    Args:
        epochs, steps_per_epoch: how much there is to do.
        done: steps that an earlier run did.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, done: int = 0, console: Console | None = None) -> None:
        self.console = Console(highlight=False) if console is None else console
        self.epochs = epochs
        self.bar: Progress | None = None
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn())
            times = (TimeElapsedColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, *times, console=self.console, transient=True)
            self.task = self.bar.add_task("", total=epochs * steps_per_epoch, completed=done)
            self.bar.start()

    def step(self, row: Row) -> None:
        if self.bar is not None:
            text = f"epoch {_count(row['epoch'])}  loss {row['loss']:.4f}  {row['images_per_second']:.0f} images/s"
            self.bar.update(self.task, completed=row["step"], description=text)

    def epoch(self, row: Row) -> None:
        text = (
            f"epoch {_count(row['epoch'])}/{self.epochs}  train loss {row['train_loss']:.4f}  "
            f"validation loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.2%}"
        )
        if row["averaged_val_accuracy"] is not None:
            text += f"; averaged weights {row['averaged_val_accuracy']:.2%}"
        self.console.print(f"{text}  ({row['seconds']:.0f} s)", soft_wrap=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def _count(epoch: int | float | None) -> int:
    return int(epoch or 0) + 1
