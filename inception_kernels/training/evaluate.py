"""How good a model is on a set of images."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inception_kernels.training.distributed import Processes


@dataclass(frozen=True)
class Evaluation:
    """How a model answers.

    Attributes:
        loss: mean cross entropy, without smoothing.
        confusion: int64 ``[K, K]``, images by (label, answer).
    """

    loss: float
    confusion: Tensor

    @property
    def accuracy(self) -> float:
        """The share of images whose largest logit is that of their label."""
        return int(self.confusion.trace()) / max(1, int(self.confusion.sum()))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context of a precision: "fp32", or "bf16" for autocast.

    Raises:
        ValueError: another precision.
    """
    if precision == "fp32":
        return nullcontext()
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    raise ValueError(f"precision: expected fp32 or bf16, got {precision!r}")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    processes: Processes,
    precision: str = "fp32",
) -> Evaluation:
    """The model in evaluation mode on every batch ``([N, C, H, W], [N])`` of all processes. Its mode is restored."""
    device = processes.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    training = model.training
    model.eval()
    try:
        for images, labels in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with autocast(device, precision):
                logits = model(images)
            loss += F.cross_entropy(logits.float(), labels, reduction="sum").double()
            confusion += torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes)
    finally:
        model.train(training)
    processes.sum(loss)
    processes.sum(confusion)
    return Evaluation(float(loss) / max(1, int(confusion.sum())), confusion.view(classes, classes).cpu())
