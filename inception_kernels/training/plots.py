"""Pictures of a run: its curves, and which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: files only, whatever display there is

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from inception_kernels.training.log import Row

# Okabe and Ito's palette: told apart by the colour-blind too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "font.size": 10,
    "savefig.dpi": 130,
}
_MOST_CELLS_WITH_NUMBERS = 20


def curves(epochs: Sequence[Row], path: Path, title: str) -> None:
    """Loss and accuracy by epoch, in training and in validation, with the averaged weights where there are any."""
    lines = (("train", "train_"), ("validation", "val_"), ("validation, averaged weights", "averaged_val_"))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4))
        for axis, quantity in zip(axes, ("loss", "accuracy"), strict=True):
            for (label, prefix), colour in zip(lines, COLOURS, strict=False):
                draw(axis, epochs, f"{prefix}{quantity}", label, colour)
            axis.set_xlabel("epoch")
            axis.set_ylabel("cross entropy" if quantity == "loss" else "accuracy")
        axes[0].set_yscale("log")  # the first epochs can be far off
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes[0].yaxis.set_minor_formatter(NullFormatter())
        axes[0].legend(frameon=False)
        figure.suptitle(title)
        figure.tight_layout()
        figure.savefig(path)
        plt.close(figure)


def draw(axis: Axes, epochs: Sequence[Row], column: str, label: str, colour: str) -> None:
    """One column of the epochs' rows as a line over the epochs, counted from 1; nothing where it has no values."""
    points = [(int(row["epoch"] or 0) + 1, row[column]) for row in epochs if row[column] is not None]
    if points:
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label, color=colour)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def confusion(matrix: Tensor, classes: Sequence[str], path: Path, title: str) -> None:
    """Images ``[K, K]`` by (label, answer), coloured by the share of the label's images."""
    counts = matrix.numpy()
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    few = len(classes) <= _MOST_CELLS_WITH_NUMBERS
    with plt.rc_context({**STYLE, "axes.grid": False}):
        side = max(4.5, 0.45 * len(classes)) if few else 9
        figure, axis = plt.subplots(figsize=(side + 1, side))
        picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(picture, ax=axis, label="share of the label's images", shrink=0.8)
        if few:
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axis.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
            axis.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 3 else 0)
            axis.set_yticks(range(len(classes)), classes)
        axis.set_xlabel("answer")
        axis.set_ylabel("label")
        axis.set_title(title)
        figure.tight_layout()
        figure.savefig(path)
        plt.close(figure)
