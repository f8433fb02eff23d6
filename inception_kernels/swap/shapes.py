"""Input and output shape of every convolution for one example input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def modes(model: nn.Module, training: bool | None = None) -> Iterator[None]:
    """Keep every module's `training` flag; set all to `training` inside the block unless it is None."""
    before = {module: module.training for module in model.modules()}
    try:
        if training is not None:
            for module in before:
                module.training = training
        yield
    finally:
        for module, value in before.items():
            module.training = value


def run(model: nn.Module, example_input: Any) -> Any:
    """`model(x)`, `model(*inputs)` for a tuple or list, `model(**inputs)` for a dictionary."""
    if isinstance(example_input, dict):
        return model(**example_input)
    if isinstance(example_input, tuple | list):
        return model(*example_input)
    return model(example_input)


def convolution_shapes(model: nn.Module, example_input: Any) -> tuple[dict[int, torch.Size], dict[int, torch.Size]]:
    """Shapes by `id` of the convolution, from one evaluation pass without gradients; its first call counts."""
    inputs: dict[int, torch.Size] = {}
    outputs: dict[int, torch.Size] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        if arguments and isinstance(arguments[0], torch.Tensor) and isinstance(result, torch.Tensor):
            inputs.setdefault(id(module), arguments[0].shape)
            outputs.setdefault(id(module), result.shape)

    # TorchScript modules take no Python hooks.
    watched = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    handles = [module.register_forward_hook(note) for module in watched]
    try:
        with modes(model, training=False), torch.no_grad():
            run(model, example_input)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, outputs
