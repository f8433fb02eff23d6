"""`torch.compile`: on a CPU inductor with freezing (inference), on a GPU `mode="max-autotune"`."""

from __future__ import annotations

import torch

from inception_kernels.bench.contenders.base import Baseline, Prepared, Unfit
from inception_kernels.bench.contenders.eager import layout_name, module_step
from inception_kernels.bench.problem import Case, Problem
from inception_kernels.bench.row import LEFT_OUT


class Compiled(Baseline):
    """Compiled from the channels-last module, the layout inductor's convolutions prefer."""

    def __init__(self, name: str = "torch.compile", mode: str | None = None, training: bool = True) -> None:
        self.name = name
        self.mode = mode
        self.training = training

    def unfit(self, case: Case) -> Unfit | None:
        if case.training and not self.training:
            return Unfit(LEFT_OUT, "compiling training takes minutes: not part of --quick")
        return None

    def prepare(self, problem: Problem) -> Prepared:
        import torch._inductor.config as inductor

        step = module_step(problem, channels_last=True)
        step.function = torch.compile(step.function, mode=self.mode, dynamic=False)
        freeze = not problem.case.training and torch.device(problem.device).type == "cpu"
        with problem.mode(), inductor.patch(freezing=freeze):
            step()  # compiles
        return Prepared(step, step.outputs, layout_name(True))


def forget_compiled() -> None:
    """Drop compiled code between cases: many modules of one class would otherwise hit the recompile limit."""
    torch._dynamo.reset()
