from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def label_smoothing_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    smoothing: float = 0.1,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """:func:`inception_kernels.label_smoothing_cross_entropy` in plain PyTorch, argument for argument."""
    weight = None if weight is None else weight.to(logits.dtype)
    return F.cross_entropy(
        logits, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing
    )
