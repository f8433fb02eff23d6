"""What the compiler needs to know of the operator that runs a network's steps. `inception_kernels.graph` calls it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _extension
from ._common import empty_activations


def _fake(inputs: list[Tensor], program: Tensor, constants: Tensor, output_sizes: list[int]) -> list[Tensor]:
    sizes = [output_sizes[i : i + 4] for i in range(0, len(output_sizes), 4)]
    return [empty_activations(inputs[0], size, torch.channels_last) for size in sizes]


if _extension.available:
    torch.library.register_fake("inception_kernels::run_program", _fake)
