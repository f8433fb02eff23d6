"""Where the time of an optimised network goes."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from .report import StepTime


def profile(optimized: Any, args: tuple[Any, ...], kwargs: dict[str, Any], repeats: int) -> list[StepTime]:
    """Programs only: what runs as PyTorch operators is between them. See `Optimized.profile`."""
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    times: list[StepTime] = []
    for program, inputs in optimized.programs(*args, **kwargs):
        call = (inputs, program.program, program.constants, program.sizes)
        runs = [torch.ops.inception_kernels.time_program(*call).tolist() for _ in range(repeats)]
        order = program.plan.order()
        for scheduled in program.plan.steps:
            parts = [i for i, (step, _, _) in enumerate(order) if step is scheduled]  # one, or one for each image
            seconds = statistics.median(sum(run[i] for i in parts) for run in runs)
            kind = type(scheduled.step).__name__
            shape = " x ".join(map(str, program.plan.shapes[scheduled.x]))
            detail = f"{scheduled.step.extra_repr()} of {shape}"
            times.append(StepTime(scheduled.y.name, kind, detail, 1e3 * seconds))
    return times
