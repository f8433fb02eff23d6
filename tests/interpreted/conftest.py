"""Every test here runs under Triton's interpreter, in a process of its own:

TRITON_INTERPRET=1 python -m pytest tests/interpreted
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import interpreter  # noqa: F401  (before any kernel is defined)
import torch


@pytest.fixture(autouse=True)
def _strict_float32() -> Iterator[None]:
    """PyTorch's flag allows TF32 in cuDNN's convolutions by default; accuracy in float32 is judged without."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
