from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import _extension, backends, reference
from . import _checks as check
from ._common import autocast_dtype, namespace, refuse_double_backward

_NAME = "label_smoothing_cross_entropy"
_REDUCTIONS = ("mean", "sum", "none")


def label_smoothing_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    smoothing: float = 0.1,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of the softmax of ``logits`` against labels mixed with the uniform distribution, in one operator.

    ``-sum_k q'(k) log p(k)`` with ``q'(k) = (1 - smoothing) [k = target] + smoothing / K``: label-smoothing
    regularization (Szegedy et al. 2016, section 7) with the paper's uniform prior and its epsilon of 0.1. Equal to
    ``torch.nn.functional.cross_entropy(..., label_smoothing=smoothing)``, for logits of any size. Forward and backward
    each read the logits once; no tensor of probabilities exists.

    Args:
        logits: ``[N, K]``, ``[K]`` or ``[N, K, d1, ...]``, float32, float64, bfloat16 or float16. Adjacent classes
            are native (``[N, K]``; channels-last ``[N, K, H, W]``), other layouts are copied.
        target: ``[N]``, ``[]`` or ``[N, d1, ...]``, int64: class indices from 0 to K - 1, or ``ignore_index``.
        weight: ``[K]`` of the logits' dtype, or float32 beside 16-bit logits: a factor per class as in
            ``cross_entropy``, or None. Not differentiable.
        smoothing: the paper's epsilon, from 0 to 1.
        ignore_index: rows with this label have neither loss nor gradient and do not count in the mean.
        reduction: "mean" (over the weights of the labels that count), "sum" or "none".

    Returns:
        ``[]``, or target's shape with reduction "none", of the logits' dtype; under autocast in float32, as PyTorch's
        loss. Accumulated in float32 and float64. The mean of no rows is nan, as in PyTorch.

    Raises:
        TypeError: an argument that is no tensor or has the wrong dtype.
        ValueError: a wrong shape, device, number or name.
        IndexError: a label outside of the classes. Nothing has run then.
        BackendUnavailableError: a backend forced with ``use_backend`` cannot run this call.
    """
    _check_logits(logits)
    _check_target(target, logits)
    classes = logits.shape[1 if logits.dim() > 1 else 0]
    if weight is not None:
        check.vector(weight, classes, logits, "weight")
        if weight.requires_grad:
            raise ValueError("weight: expected a constant, got a tensor that requires a gradient; pass weight.detach()")
    smoothing = check.number(smoothing, "smoothing")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing: expected a number from 0 to 1, got {smoothing}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an integer, got {check.describe(ignore_index)}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(_REDUCTIONS)}, got {reduction!r}")

    backend = backends.choose(_NAME, logits)
    if backend == "reference":
        return reference.label_smoothing_cross_entropy(logits, target, weight, smoothing, ignore_index, reduction)
    rows, labels = logits, target
    if logits.dim() != 2:
        rows = logits if logits.dim() == 1 else logits.movedim(1, -1)
        rows, labels = rows.reshape(-1, classes), target.reshape(-1)
    loss, _ = namespace(backend).label_smoothing_cross_entropy(
        rows, labels, _accumulation(weight, logits), smoothing, ignore_index, reduction
    )
    if reduction == "none" and logits.dim() != 2:
        loss = loss.reshape(target.shape)
    return loss if loss.dtype == logits.dtype or autocast_dtype(logits) is not None else loss.to(logits.dtype)


def _check_logits(logits: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits: expected a tensor [N, K], got {check.describe(logits)}")
    if logits.layout != torch.strided or logits.is_quantized or logits.dtype not in check.DTYPES:
        raise TypeError(
            f"logits: expected a dense float32, float64, bfloat16 or float16 tensor, got {check.describe(logits)}"
        )
    if logits.dim() == 0 or logits.shape[1 if logits.dim() > 1 else 0] == 0:
        raise ValueError(
            f"logits: expected [N, K], [K] or [N, K, d1, ...] with at least one class, got {check.describe(logits)}"
        )


def _check_target(target: Tensor, logits: Tensor) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"target: expected a tensor of class indices, got {check.describe(target)}")
    if target.dtype != torch.int64:
        raise TypeError(f"target: expected int64 class indices, got {check.describe(target)}; pass target.long()")
    expected = [] if logits.dim() == 1 else [logits.shape[0], *logits.shape[2:]]
    if list(target.shape) != expected:
        raise ValueError(
            f"target: expected {expected} for logits {check.describe(logits)}, got {check.describe(target)}"
        )
    if target.device != logits.device:
        raise ValueError(f"target: expected the logits' device {logits.device}, got {check.describe(target)}")


def _accumulation(weight: Tensor | None, logits: Tensor) -> Tensor | None:
    return None if weight is None else weight.to(_accumulation_dtype(logits)).contiguous()


def _accumulation_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _fake(logits, target, weight, smoothing, ignore_index, reduction):
    dtype = _accumulation_dtype(logits)
    shape = (logits.shape[0],) if reduction == "none" else ()
    return logits.new_empty(shape, dtype=dtype), logits.new_empty((logits.shape[0], 2), dtype=dtype)


def _fake_backward(grad_loss, logits, target, weight, statistics, smoothing, ignore_index, reduction):
    return logits.new_empty(logits.shape)


def _setup(ctx, inputs, output):
    logits, target, weight, *options = inputs
    ctx.save_for_backward(logits, target, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.options = options


def _backward(kernels, ctx, grad_loss, _):
    grad = kernels.label_smoothing_cross_entropy_backward(grad_loss, *ctx.saved_tensors, *ctx.options)
    return grad, *[None] * 5


def register(name: str) -> None:
    """Fakes and the gradient of the operators of one namespace."""
    kernels = getattr(torch.ops, name)
    torch.library.register_fake(f"{name}::{_NAME}", _fake)
    torch.library.register_fake(f"{name}::{_NAME}_backward", _fake_backward)
    torch.library.register_autograd(f"{name}::{_NAME}", partial(_backward, kernels), setup_context=_setup)
    torch.library.register_autograd(f"{name}::{_NAME}_backward", refuse_double_backward(_NAME))


if _extension.available:
    register("inception_kernels")
