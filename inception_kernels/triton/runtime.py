"""What of Triton this process has; imports nothing of Triton itself."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Device:
    """What the choice of a configuration asks of a device."""

    capability: tuple[int, int]
    multiprocessors: int
    shared: int  # bytes of shared memory that one block can have


# Tensors that are on no GPU are interpreted or only compiled, as if for this one.
without_gpu = Device((9, 0), 132, 232448)


def device_of(x: Tensor) -> Device:
    if not x.is_cuda:
        return without_gpu
    properties: Any = torch.cuda.get_device_properties(x.device)  # torch's stubs lack the last
    return Device(
        (properties.major, properties.minor), properties.multi_processor_count, properties.shared_memory_per_block_optin
    )


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors; Triton reads the variable when they are defined."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing() -> str | None:
    """None where Triton is installed, else the reason."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    return None
