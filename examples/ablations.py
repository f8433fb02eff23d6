"""The papers' ablations in miniature: small networks of fused operators on scikit-learn's handwritten digits.

    python examples/ablations.py segments --output pictures
    python examples/ablations.py all --output pictures

Each one trains a few variants from several seeds in a minute or two on two cores and writes one picture: the loss and
the accuracy by epoch, with the range over the seeds. Digits of 8x8 pixels are an easy task: see
the papers for the effect at the size that they speak of.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from inception_kernels.models.factorization import SmallWindows
from inception_kernels.models.xception_blocks import SegmentedConv2d
from inception_kernels.nn import ConvBNAct, SeparableConv2d
from inception_kernels.training import data
from inception_kernels.training.plots import COLOURS, STYLE
from inception_kernels.training.recipes import Recipe, inception_v3_imagenet
from inception_kernels.training.trainer import Options, Result, Trainer

SIZE = 16
CHANNELS = 32
RECIPE = replace(inception_v3_imagenet(), dropout=0.0, label_smoothing=0.0, average_decay=0.98)


@dataclass(frozen=True)
class Variant:
    """One curve: what is trained, and how."""

    label: str
    block: Callable[[], nn.Module]
    depth: int = 2
    recipe: Recipe = RECIPE


@dataclass(frozen=True)
class Ablation:
    """One picture."""

    title: str
    variants: tuple[Variant, ...]
    loss: str = "train_loss"  # or another column, where the variants train on different losses


class Residual(nn.Module):
    """A block plus its input."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def network(variant: Variant) -> nn.Module:
    """Strided 3x3 -> blocks -> average over the image -> linear."""
    blocks = [variant.block() for _ in range(variant.depth)]
    stem = ConvBNAct(1, CHANNELS, 3, stride=2, padding=1)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10))


def windows(mid_activation: str) -> Callable[[], nn.Module]:
    return lambda: SmallWindows(CHANNELS, CHANNELS, 5, mid_activation=mid_activation)


def separable(mid_activation: str = "none") -> Callable[[], nn.Module]:
    return lambda: SeparableConv2d(CHANNELS, CHANNELS, input_activation="relu", mid_activation=mid_activation)


def segmented(segments: int) -> Callable[[], nn.Module]:
    return lambda: SegmentedConv2d(CHANNELS, CHANNELS, segments, activation="relu")


ABLATIONS = {
    "factors": Ablation(
        "5x5 as two 3x3: ReLU or nothing between the factors\n(Szegedy et al. 2016, section 3.1, figure 2)",
        (Variant("ReLU between", windows("relu")), Variant("linear between", windows("none"))),
    ),
    "intermediate": Ablation(
        "Between depthwise and pointwise: nothing, ReLU or ELU\n(Chollet 2017, section 4.7, figure 10)",
        tuple(Variant(label, separable(label.lower()), depth=4) for label in ("none", "ReLU", "ELU")),
    ),
    "residuals": Ablation(
        "Eight separable convolutions with and without residual connections\n(Chollet 2017, section 4.6, figure 9)",
        (
            Variant("residual", lambda: Residual(separable()()), depth=8),
            Variant("no residual", separable(), depth=8),
        ),
    ),
    "smoothing": Ablation(
        "With and without label smoothing\n(Szegedy et al. 2016, section 7)",
        tuple(
            Variant(f"epsilon {epsilon:g}", windows("relu"), recipe=replace(RECIPE, label_smoothing=epsilon))
            for epsilon in (0.0, 0.1)
        ),
        "averaged_val_loss",
    ),
    "segments": Ablation(
        "From a regular convolution (1 segment) to one spatial convolution per channel\n(Chollet 2017, section 1.2)",
        tuple(
            Variant(f"{count} segment{'s' if count > 1 else ''}", segmented(count)) for count in (1, 4, 16, CHANNELS)
        ),
    ),
}


def train(variant: Variant, images: data.Data, epochs: int, seed: int) -> tuple[Result, int]:
    """What the run found, and how many parameters the network has."""
    torch.manual_seed(seed)
    net = network(variant)
    options = Options(epochs=epochs, batch_size=32, seed=seed, channels_last=True)
    result = Trainer(net, images, variant.recipe, options).run()
    return result, sum(parameter.numel() for parameter in net.parameters())


def run(name: str, epochs: int, seeds: int, folder: Path, console: Console) -> Path:
    """Train every variant from every seed, print a table and draw the picture."""
    ablation, images = ABLATIONS[name], data.digits(SIZE)
    table = Table(title=ablation.title, title_justify="left")
    for heading in ("variant", "parameters", "train loss", "validation loss", "validation accuracy"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.2))
        for variant, colour in zip(ablation.variants, COLOURS, strict=False):
            runs = [train(variant, images, epochs, seed) for seed in range(seeds)]
            columns = ("train_loss", "averaged_val_loss", "averaged_val_accuracy")
            values = {column: np.array([[row[column] for row in run.epochs] for run, _ in runs]) for column in columns}
            for axis, column in zip(axes, (ablation.loss, "averaged_val_accuracy"), strict=True):
                draw(axis, values[column], variant.label, colour)
            last = [values[column][:, -1] for column in columns]
            cells = [f"{each.mean():.3f} ± {each.std():.3f}" for each in last]
            table.add_row(variant.label, f"{runs[0][1]:,}", *cells)
        axes[0].set_ylabel("training loss" if ablation.loss == "train_loss" else "validation loss, averaged weights")
        axes[1].set_ylabel("validation accuracy, averaged weights")
        axes[1].legend(frameon=False, loc="lower right")
        figure.suptitle(ablation.title, fontsize=11)
        figure.tight_layout()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.png"
        figure.savefig(path)
        plt.close(figure)
    console.print(table)
    return path


def draw(axis: plt.Axes, values: np.ndarray, label: str, colour: str) -> None:
    """The mean over the seeds ``[seeds, epochs]`` as a line, their range as a band."""
    x = np.arange(1, values.shape[1] + 1)
    axis.plot(x, values.mean(0), marker="o", markersize=3, color=colour, label=label)
    axis.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    axis.set_xlabel("epoch")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ablation", choices=[*ABLATIONS, "all"])
    parser.add_argument("--epochs", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="(default: torch's choice)")
    parser.add_argument("--output", type=Path, default=Path("ablations"), metavar="DIR", help="(default: %(default)s)")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    console = Console(highlight=False)
    for name in ABLATIONS if args.ablation == "all" else [args.ablation]:
        console.print(f"wrote {run(name, args.epochs, args.seeds, args.output, console)}")


if __name__ == "__main__":
    main()
