"""A trained network as one file: it runs where this package is installed, without the trainer or the model's source."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

_ABOUT = "inception_kernels.json"


@dataclass(frozen=True)
class ExportedModel:
    """A network that was read from a file.

    Attributes:
        network: float32 ``[N, channels, size, size]`` within -1 and 1 -> logits ``[N, K]``, for any N.
        classes: the names of the K classes.
        channels, size: of the images.
    """

    network: nn.Module
    classes: tuple[str, ...]
    channels: int
    size: int


@torch.no_grad()
def save(model: nn.Module, path: Path, classes: Sequence[str], channels: int, size: int) -> None:
    """Write the model in evaluation mode with `torch.export`, for any number of images. Its own mode is restored.

    Fused operators stay fused in the file: reading it needs ``import inception_kernels``, which registers them. Without
    a swap it holds PyTorch's operators alone.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        images = torch.zeros(2, channels, size, size, device=device)
        program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    finally:
        model.train(training)
    about = {"classes": list(classes), "channels": channels, "size": size}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path, extra_files={_ABOUT: json.dumps(about)})


def load(path: Path) -> ExportedModel:
    """Read what `save` wrote.

    Raises:
        ValueError: there is no such file, or `save` did not write it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected an exported model, found no file")
    files = {_ABOUT: ""}
    try:
        program = torch.export.load(path, extra_files=files)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path}: expected an exported model: {error}") from error
    if not files[_ABOUT]:
        raise ValueError(f"{path}: expected a model that `inception-kernels train --export` wrote: it names no classes")
    about = json.loads(files[_ABOUT])
    return ExportedModel(program.module(), tuple(about["classes"]), about["channels"], about["size"])


def predict(model: ExportedModel, images: Tensor) -> list[str]:
    """The class of each image ``[N, channels, size, size]``."""
    with torch.no_grad():
        return [model.classes[index] for index in model.network(images).argmax(1).tolist()]
