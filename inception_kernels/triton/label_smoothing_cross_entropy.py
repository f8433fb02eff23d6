"""Label-smoothing cross entropy in Triton: one pass over the logits forward, one backward, any number of classes.

A program owns one row and walks over its classes with a running maximum. All terms of its sums are non-negative, so
nothing cancels however large the logits are. Sums over rows are one program's, in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._counters import count_kernel

_NAME = "label_smoothing_cross_entropy"
_MAX_BLOCK = 4096  # classes a step
_ROWS = 1024  # rows a step of the sums over rows


@triton.jit
def _row_label(target, row, K, ignore_index):
    """(label, whether the row counts, whether its label is a class); a label that is none is never used as an index."""
    label = tl.load(target + row)
    valid = (label >= 0) & (label < K)
    return tl.where(valid, label, 0), label != ignore_index, valid


@triton.jit
def _forward(
    logits, target, weight, losses, statistics, stride, K, ignore_index, smoothing,
    WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    label, counts, valid = _row_label(target, row, K, ignore_index)
    k = tl.arange(0, BLOCK)
    reference = tl.full((), 0.0, tl.float32)  # the maximum so far; 0 while every class is impossible
    largest = tl.full((), float("-inf"), tl.float32)
    exponentials = tl.full((), 0.0, tl.float32)  # sum_k exp(z[k] - reference)
    distances = tl.full((), 0.0, tl.float32)  # sum_k w[k] (reference - z[k]) / K, divided first: it cannot overflow
    weights = tl.full((), 0.0, tl.float32)  # sum_k w[k] / K
    for begin in range(0, K, BLOCK):
        inside = begin + k < K
        z = tl.load(logits + begin + k, mask=inside, other=float("-inf")).to(tl.float32)
        w = tl.where(inside, 1.0 / K, 0.0)
        if WEIGHTED:
            w *= tl.load(weight + begin + k, mask=inside, other=0.0)
        largest = tl.maximum(largest, tl.max(z, axis=0))
        moved = tl.where(largest == float("-inf"), 0.0, largest)
        exponentials = tl.where(exponentials == 0.0, 0.0, exponentials * tl.exp(reference - moved))
        distances += tl.where(weights == 0.0, 0.0, weights * (moved - reference))
        reference = moved
        z = tl.where(inside, z, reference)
        exponentials += tl.sum(tl.where(inside, tl.exp(z - reference), 0.0), axis=0)
        distances += tl.sum(w * (reference - z), axis=0)
        weights += tl.sum(w, axis=0)
    log_sum = tl.log(exponentials)
    label_weight = tl.full((), 1.0, tl.float32)
    if WEIGHTED:
        label_weight = tl.load(weight + label)
    z_label = tl.load(logits + label).to(tl.float32)
    loss = (1.0 - smoothing) * label_weight * (log_sum + (reference - z_label))
    if smoothing != 0.0:
        loss += smoothing * (distances + weights * log_sum)
    loss = tl.where(counts, tl.where(valid, loss, float("nan")), 0.0)
    tl.store(losses + row, loss)
    tl.store(statistics + 2 * row, reference)
    tl.store(statistics + 2 * row + 1, 1.0 / exponentials)


@triton.jit(do_not_specialize=["N", "ignore_index"])
def _sum_rows(
    losses, target, weight, result, N, K, ignore_index, MEAN: tl.constexpr, LOSSES: tl.constexpr,
    WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum or mean of the losses; without LOSSES only what the mean divides by."""
    i = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    divisor = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, N, BLOCK):
        inside = begin + i < N
        if LOSSES:
            total += tl.load(losses + begin + i, mask=inside, other=0.0).to(tl.float64)
        if MEAN:
            label = tl.load(target + begin + i, mask=inside, other=ignore_index)
            counts = inside & (label != ignore_index)
            label_weight = tl.where(counts, 1.0, 0.0)
            if WEIGHTED:
                label_weight = tl.load(weight + label, mask=counts & (label >= 0) & (label < K), other=0.0)
            divisor += label_weight.to(tl.float64)
    value = tl.sum(divisor, axis=0)
    if LOSSES:
        value = tl.sum(total, axis=0) / value if MEAN else tl.sum(total, axis=0)
    tl.store(result, value.to(tl.float32))


@triton.jit
def _backward(
    grad_loss, divisor, logits, target, weight, statistics, grad_logits, grad_stride, stride, K, weights,
    ignore_index, smoothing, MEAN: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad[k] = scale (p[k] mass - q[k]) with q[k] = prior w[k], and the label's mass more at the label."""
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * BLOCK
    label, counts, valid = _row_label(target, row, K, ignore_index)
    k = begin + tl.arange(0, BLOCK)
    inside = k < K
    scale = tl.load(grad_loss + row * grad_stride)
    if MEAN:
        scale = scale / tl.load(divisor)
    prior = smoothing / K
    label_mass = tl.full((), 1.0, tl.float32)
    total = prior * K
    w = tl.full((BLOCK,), 1.0, tl.float32)
    if WEIGHTED:
        label_mass = tl.load(weight + label)
        total = prior * tl.load(weights)
        w = tl.load(weight + k, mask=inside, other=0.0)
    label_mass = label_mass * (1.0 - smoothing)
    z = tl.load(logits + row * stride + k, mask=inside, other=0.0).to(tl.float32)
    p = tl.exp(z - tl.load(statistics + 2 * row)) * tl.load(statistics + 2 * row + 1)
    q = prior * w + tl.where(k == label, label_mass, 0.0)
    grad = scale * (p * (label_mass + total) - q)
    grad = tl.where(counts, tl.where(valid, grad, float("nan")), 0.0)
    tl.store(grad_logits + row * K + k, grad.to(grad_logits.dtype.element_ty), mask=inside)


def _adjacent_classes(logits: Tensor) -> Tensor:
    return logits if logits.shape[1] == 1 or logits.stride(1) == 1 else logits.contiguous()


def _block(classes: int) -> int:
    return min(_MAX_BLOCK, max(128, triton.next_power_of_2(classes)))


def _divisor(target: Tensor, weight: Tensor | None, classes: int, ignore_index: int) -> Tensor:
    divisor = torch.empty((), dtype=torch.float32, device=target.device)
    _sum_rows[(1,)](
        divisor, target, weight if weight is not None else divisor, divisor, target.shape[0], classes, ignore_index,
        MEAN=True, LOSSES=False, WEIGHTED=weight is not None, BLOCK=_ROWS,
    )  # fmt: skip
    return divisor


def label_smoothing_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float, ignore_index: int, reduction: str
) -> tuple[Tensor, Tensor]:
    """Loss ([] or [N] float32) of logits [N, K], and each row's (reference, 1 / sum of exponentials) [N, 2] float32.

    A label that is no class gives nan: a device cannot raise without waiting for it.
    """
    logits, target = _adjacent_classes(logits), target.contiguous()
    rows, classes = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    statistics = torch.empty((rows, 2), dtype=torch.float32, device=logits.device)
    if rows:
        count_kernel(f"{_NAME}.forward.triton")
        _forward[(rows,)](
            logits, target, weight if weight is not None else losses, losses, statistics, logits.stride(0), classes,
            ignore_index, smoothing, WEIGHTED=weight is not None, BLOCK=_block(classes),
        )  # fmt: skip
    if reduction == "none":
        return losses, statistics
    loss = torch.empty((), dtype=torch.float32, device=logits.device)
    _sum_rows[(1,)](
        losses, target, weight if weight is not None else losses, loss, rows, classes, ignore_index,
        MEAN=reduction == "mean", LOSSES=True, WEIGHTED=weight is not None, BLOCK=_ROWS,
    )  # fmt: skip
    return loss, statistics


def label_smoothing_cross_entropy_backward(
    grad_loss: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, statistics: Tensor, smoothing: float,
    ignore_index: int, reduction: str,
) -> Tensor:  # fmt: skip
    """Gradient [N, K] of the logits, contiguous, of their dtype; grad_loss has the shape of the loss."""
    logits, target = _adjacent_classes(logits), target.contiguous()
    rows, classes = logits.shape
    grad_logits = torch.empty((rows, classes), dtype=logits.dtype, device=logits.device)
    if rows == 0:
        return grad_logits
    mean = reduction == "mean"
    divisor = _divisor(target, weight, classes, ignore_index) if mean else statistics
    block = _block(classes)
    count_kernel(f"{_NAME}.backward.triton")
    _backward[(rows, triton.cdiv(classes, block))](
        grad_loss, divisor, logits, target, weight if weight is not None else statistics, statistics, grad_logits,
        grad_loss.stride(0) if reduction == "none" else 0, logits.stride(0), classes,
        weight.sum() if weight is not None else statistics, ignore_index, smoothing,
        MEAN=mean, WEIGHTED=weight is not None, BLOCK=block,
    )  # fmt: skip
    return grad_logits
