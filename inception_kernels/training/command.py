"""`python -m inception_kernels train`."""

from __future__ import annotations

import argparse
import importlib.util
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from inception_kernels import models
from inception_kernels.swap import swap
from inception_kernels.training import data, export
from inception_kernels.training.data import Data
from inception_kernels.training.distributed import Processes, processes
from inception_kernels.training.log import Log, open_logs
from inception_kernels.training.recipes import RECIPES, Recipe
from inception_kernels.training.terminal import Terminal
from inception_kernels.training.trainer import Options, Result, Trainer

DEFAULT_RECIPE = {"inception_v3": "inception_v3_imagenet", "xception": "xception_imagenet"}
SMALLEST_IMAGE = {"inception_v3": 75, "xception": 32}
_AUXILIARY_IMAGE = 299  # the auxiliary classifier's 5x5 window needs a 17x17 map


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `train`."""
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--data",
        required=True,
        metavar="digits|PATH",
        help="digits: scikit-learn's handwritten digits, "
        "no download; PATH: a folder with train/<class>/* and val/<class>/*",
    )
    what.add_argument("--model", choices=sorted(DEFAULT_RECIPE), default="xception", help="(default: %(default)s)")
    what.add_argument("--width", type=float, default=1.0, help="factor on every number of channels (default: 1)")
    what.add_argument("--image-size", type=int, default=None, metavar="PIXELS", help="(default: the recipe's)")
    what.add_argument("--operators", choices=("fused", "reference"), default="fused", help="(default: %(default)s)")
    how = parser.add_argument_group("how")
    how.add_argument("--recipe", choices=sorted(RECIPES), default=None, help="(default: the model's on ImageNet)")
    how.add_argument("--epochs", type=int, default=None, help="(default: the recipe's)")
    how.add_argument(
        "--batch-size",
        type=int,
        default=None,
        metavar="N",
        help="images per step, of all processes together (default: the recipe's)",
    )
    how.add_argument("--learning-rate", type=float, default=None, metavar="RATE", help="(default: the recipe's)")
    how.add_argument("--label-smoothing", type=float, default=None, metavar="EPSILON", help="(default: the recipe's)")
    how.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="passes per step, each on a part of the batch"
    )
    how.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast")
    how.add_argument("--no-augment", dest="augment", action="store_false", help="show every image as in evaluation")
    how.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    how.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s); several processes: torchrun")
    how.add_argument("--threads", type=int, default=None, metavar="N", help="of each process (default: torch's choice)")
    how.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (default: 0)")
    out = parser.add_argument_group("output")
    out.add_argument("--output", type=Path, required=True, metavar="DIR", help="logs, pictures and the checkpoint")
    out.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    out.add_argument(
        "--checkpoint-steps",
        type=int,
        default=None,
        metavar="N",
        help="save every N steps, too, not only after each epoch",
    )
    out.add_argument(
        "--export", type=Path, default=None, metavar="FILE.pt2", help="write the trained network with torch.export"
    )


def run(args: argparse.Namespace) -> int:
    """Train, and write logs, pictures, the checkpoint and the exported network. Returns the exit status.

    Raises:
        ValueError: what was asked for does not exist or does not fit.
        RuntimeError: the loss is no longer finite.
    """
    checkpoint = args.output / "checkpoint.pt"
    _check(args, checkpoint)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with processes(args.device) as mine:
        return _run(args, checkpoint, mine)


def build_model(name: str, images: Data, recipe: Recipe, width: float, size: int) -> nn.Module:
    """`inception_v3` or `xception` for these images, with random weights.

    The auxiliary classifier is built where the recipe gives its loss a weight and the images are large enough for it.

    Raises:
        ValueError: the images are too small for the network, or the width is not positive.
    """
    if size < SMALLEST_IMAGE[name]:
        raise ValueError(f"image size: expected at least {SMALLEST_IMAGE[name]} pixels for {name}, got {size}")
    options: dict[str, Any] = {}
    if name == "inception_v3":
        options["aux_logits"] = recipe.auxiliary_weight > 0 and size >= _AUXILIARY_IMAGE
    return models.load(
        name,
        num_classes=len(images.classes),
        in_channels=images.channels,
        dropout=recipe.dropout,
        width=width,
        **options,
    )


def _run(args: argparse.Namespace, checkpoint: Path, mine: Processes) -> int:
    recipe = _recipe(args)
    size = recipe.image_size if args.image_size is None else args.image_size
    images = data.load(args.data, size)
    torch.manual_seed(args.seed)
    model = build_model(args.model, images, recipe, args.width, size)
    model.to(mine.device)
    if args.operators == "fused":
        swap(model, min_swapped=1)
    options = Options(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        accumulate=args.accumulate,
        seed=args.seed,
        precision=args.precision,
        workers=args.workers,
        augment=args.augment,
        channels_last=args.operators == "fused",
        checkpoint=checkpoint,
        checkpoint_steps=args.checkpoint_steps,
    )
    trainer = Trainer(model, images, recipe, options, mine, settings=_settings(args, recipe, size))
    if args.resume:
        trainer.restore(checkpoint)
    return _train(trainer, args, images, size)


def _check(args: argparse.Namespace, checkpoint: Path) -> None:
    if args.resume and not checkpoint.is_file():
        raise ValueError(f"--resume: expected a checkpoint at {checkpoint}, found none; leave --resume out to start")
    if not args.resume and checkpoint.exists():
        raise ValueError(f"{checkpoint} exists: --resume goes on from it, another --output starts anew")
    if args.export is not None and args.export.suffix != ".pt2":
        raise ValueError(f"--export: expected a file name that ends in .pt2, got {args.export}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the pictures need matplotlib, which is not installed: pip install matplotlib")


def _recipe(args: argparse.Namespace) -> Recipe:
    recipe = RECIPES[args.recipe or DEFAULT_RECIPE[args.model]]()
    asked = {name: getattr(args, name) for name in ("epochs", "batch_size", "learning_rate", "label_smoothing")}
    return replace(recipe, **{name: value for name, value in asked.items() if value is not None})


def _settings(args: argparse.Namespace, recipe: Recipe, size: int) -> dict[str, Any]:
    """What has to be the same in a run that goes on, or its result would be another."""
    settings = asdict(replace(recipe, sources={}))
    for name in ("name", "epochs", "sources", "image_size"):
        del settings[name]
    names = ("data", "model", "width", "operators", "accumulate", "precision", "augment", "seed")
    return {**settings, **{name: getattr(args, name) for name in names}, "image_size": size}


def _train(trainer: Trainer, args: argparse.Namespace, images: Data, size: int) -> int:
    logs: list[Log] = []
    if trainer.processes.is_first:
        done = trainer.position.step
        logs = [*open_logs(args.output, done), Terminal(trainer.options.epochs, trainer.steps_per_epoch, done)]
    trainer.logs = logs
    try:
        with _asked_to_stop() as stop:
            result = trainer.run(stop)
    finally:
        for each in logs:
            each.close()
    if not result.finished:
        _say(trainer, f"stopped after step {trainer.position.step}, which is saved; --resume goes on")
        return 130
    if trainer.processes.is_first:
        _write(trainer, result, args, images, size)
    return 0


def _write(trainer: Trainer, result: Result, args: argparse.Namespace, images: Data, size: int) -> None:
    from inception_kernels.training import plots

    title = f"{args.model}, width {args.width:g}, {size} pixels, {args.operators} operators"
    paths = [args.output / "curves.png", args.output / "confusion.png"]
    plots.curves(result.epochs, paths[0], title)
    if result.evaluation is not None:
        accuracy = f"validation accuracy {result.evaluation.accuracy:.2%}"
        plots.confusion(result.evaluation.confusion, images.classes, paths[1], accuracy)
    if args.export is not None:
        export.save(trainer.best_model, args.export, images.classes, images.channels, size)
        paths.append(args.export)
    for path in paths:
        _say(trainer, f"wrote {path}")


def _say(trainer: Trainer, text: str) -> None:
    if trainer.processes.is_first:
        print(text, flush=True)


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether the user asked to stop (ctrl-C, or a scheduler's SIGTERM); asking twice stops at once."""
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
