"""Where the numbers of a run go: CSV files, TensorBoard where it is installed."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

Value = int | float | None
Row = Mapping[str, Value]

STEP_COLUMNS = ("step", "epoch", "learning_rate", "loss", "accuracy", "gradient_norm", "images_per_second")
EPOCH_COLUMNS = (
    "epoch", "step", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
    "averaged_val_loss", "averaged_val_accuracy", "seconds",
)  # fmt: skip


class Log(Protocol):
    """Gets one row per optimizer step and one per epoch."""

    def step(self, row: Row) -> None: ...

    def epoch(self, row: Row) -> None: ...

    def close(self) -> None: ...


class _Table:
    """A CSV file with these columns. Numbers are written so that they read back as the same numbers."""

    def __init__(self, path: Path, columns: Sequence[str], last_step: int) -> None:
        kept: list[list[str]] = []
        if last_step and path.exists():
            with path.open(newline="") as file:
                reader = csv.reader(file)
                heading = next(reader, [])
                if tuple(heading) != tuple(columns):
                    raise ValueError(f"{path}: expected the columns {','.join(columns)}, got {','.join(heading)}")
                at = columns.index("step")
                # a killed process may leave half a line, and lines later than its last checkpoint
                kept = [row for row in reader if len(row) == len(columns) and int(row[at]) <= last_step]
        self.columns = columns
        self.file = path.open("w", newline="")
        self.writer = csv.writer(self.file)
        self.writer.writerows([columns, *kept])
        self.file.flush()

    def write(self, row: Row) -> None:
        self.writer.writerow(["" if row.get(name) is None else repr(row[name]) for name in self.columns])
        self.file.flush()


class CsvLog:
    """steps.csv and epochs.csv in a folder.

    Args:
        folder: is made where it is missing.
        last_step: rows up to this step stay in files that exist; 0 starts them anew.

    Raises:
        ValueError: a file that exists has other columns.
    """

    def __init__(self, folder: Path, last_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.steps = _Table(folder / "steps.csv", STEP_COLUMNS, last_step)
        self.epochs = _Table(folder / "epochs.csv", EPOCH_COLUMNS, last_step)

    def step(self, row: Row) -> None:
        self.steps.write(row)

    def epoch(self, row: Row) -> None:
        self.epochs.write(row)

    def close(self) -> None:
        self.steps.file.close()
        self.epochs.file.close()


class TensorBoardLog:
    """Event files in a folder; scalars under steps/ and epochs/."""

    def __init__(self, folder: Path, last_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=last_step + 1 if last_step else None)

    def step(self, row: Row) -> None:
        self._scalars("steps", row, ("epoch",))

    def epoch(self, row: Row) -> None:
        self._scalars("epochs", row, ("seconds",))

    def close(self) -> None:
        self.writer.close()

    def _scalars(self, group: str, row: Row, without: Sequence[str]) -> None:
        for name, value in row.items():
            if value is not None and name not in ("step", *without):
                self.writer.add_scalar(f"{group}/{name}", value, row["step"])


def open_logs(folder: Path, last_step: int = 0) -> list[Log]:
    """CSV files, and TensorBoard's event files where the package tensorboard is installed."""
    logs: list[Log] = [CsvLog(folder, last_step)]
    if importlib.util.find_spec("tensorboard") is not None:
        logs.append(TensorBoardLog(folder / "tensorboard", last_step))
    return logs
