"""What a batch norm remembers of the batches that it has seen, as one operator instead of four of PyTorch's.

On the CPU each operator of PyTorch's costs a small layer several microseconds after its kernels have swept the caches;
on a GPU each is a launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import _extension

_operator = torch.ops.inception_kernels.update_running_statistics.default if _extension.available else None


def fits(running: Sequence[Tensor | None], batches: Tensor | None, x: Tensor) -> bool:
    """Whether the operator of x's device takes the statistics and the counter of a batch norm behind x."""
    dtype, device = torch.float64 if x.dtype == torch.float64 else torch.float32, x.device
    return (
        (_extension.available if x.is_cpu else x.is_cuda and _extension.cuda_available)
        and (batches is None or (batches.device == device and batches.dtype == torch.int64 and batches.numel() == 1))
        and all(type(each) is Tensor and each.device == device and each.dtype == dtype for each in running)
        and all(each is not None and each.is_contiguous() for each in running)
    )


def run(
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor | None,
    momentum: float,
    count: int,
    mean: Tensor,
    var: Tensor,
) -> None:
    """The operator on statistics that fit, and one batch more in `batches`. Not under torch.compile or transforms."""
    assert _operator is not None
    _operator(running_mean, running_var, batches, mean, var, momentum, count)
    increment_version((running_mean, running_var) if batches is None else (running_mean, running_var, batches))


def update_running_statistics(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    count: int,
    compiled: bool,
    mean: Tensor,
    var: Tensor,
) -> None:
    """Exponential average of the batch mean and the unbiased batch variance ``[K]``, in place, as batch_norm does.

    Not to be recorded: call it with gradients off. `count`: values per channel. `compiled`: by the operator, where it
    takes them, else by PyTorch's. Nothing happens without running statistics or values.
    """
    if running_mean is None or running_var is None or count == 0:
        return
    eager = compiled and not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None
    if eager and type(mean) is Tensor and fits((running_mean, running_var), None, mean):
        run(running_mean, running_var, None, momentum, count, mean, var)
        return
    for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
        if running.dtype == batch.dtype:
            running.lerp_(batch, momentum)
        else:  # one rounding to the narrow type, not two
            running.copy_(running.to(batch.dtype).lerp_(batch, momentum))


def _fake(running_mean, running_var, batches, mean, var, momentum, count):
    return None


if _extension.available:
    torch.library.register_fake("inception_kernels::update_running_statistics", _fake)
