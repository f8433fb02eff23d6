"""Distillation: a network learns another network's softened outputs (Hinton, Vinyals, Dean 2015, arXiv:1503.02531)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 KL(p || q)``, the mean over the rows, with ``p = softmax(teacher / T)`` and ``q = softmax(student / T)``.

    Hinton, Vinyals, Dean 2015, section 2, equation 1, for soft targets alone. Its gradient is that of the paper's
    cross entropy with soft targets, but the loss is 0 where both agree. The factor T^2 keeps the gradient's size when
    the temperature changes, as the paper advises.

    Args:
        student: logits ``[N, K]``, float32, float64, bfloat16 or float16.
        teacher: logits ``[N, K]``. A constant: no gradient.
        temperature: T, above 0.

    Returns:
        ``[]``, in float64 for float64 logits of the student, otherwise in float32, in which it is computed.

    Raises:
        ValueError: different shapes, not two dimensions, or a temperature that is not above 0.
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(f"expected logits [N, K] of one shape, got {list(student.shape)} and {list(teacher.shape)}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    log_p = (teacher.detach().to(dtype) / temperature).log_softmax(1)
    log_q = (student.to(dtype) / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


class DistillationLoss(nn.Module):
    """:func:`distillation_loss` of the pair that a :class:`Distilled` network returns in training; ignores labels."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, outputs: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        student, teacher = outputs
        return distillation_loss(student, teacher, self.temperature)


class Distilled(nn.Module):
    """A student beside its teacher, for ``Trainer(..., loss=DistillationLoss(temperature))``.

    In training it returns the logits of both for the same images, in evaluation the student's. The teacher is frozen,
    in place: always in evaluation, and none of its parameters asks for a gradient.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Distilled:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not self.training:
            return self.student(x)
        with torch.no_grad():
            teacher = self.teacher(x)
        return self.student(x), teacher
