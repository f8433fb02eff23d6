"""Our operators: called directly for an operator's case; for a network swapped into it, or the network optimised."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import cast

import torch

import inception_kernels as ik
from inception_kernels import _extension, backends
from inception_kernels.bench import memory
from inception_kernels.bench.contenders.base import Prepared, Unfit
from inception_kernels.bench.contenders.eager import captured, layout_name
from inception_kernels.bench.plain import Fusable
from inception_kernels.bench.problem import Case, Problem, Step
from inception_kernels.bench.row import NOT_APPLICABLE, OURS


class Ours:
    """`backend` forces one of `backends.BACKENDS`; None leaves the choice to the package, as a user would.

    `graph`: the step is captured once in a CUDA graph and replayed.
    """

    role = OURS

    def __init__(
        self, name: str = "inception_kernels", backend: str | None = None, tune: bool = False, graph: bool = False
    ) -> None:
        self.name = name
        self.backend = backend
        self.tune = tune
        self.graph = graph

    def unfit(self, case: Case) -> Unfit | None:
        wanted = (self.backend,) if self.backend else tuple(name for name in backends.BACKENDS if name != "reference")
        reasons = {name: reason for name, reason in backends.available().items() if name in wanted}
        if None in reasons.values():
            return None
        return Unfit(NOT_APPLICABLE, "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))

    def prepare(self, problem: Problem) -> Prepared:
        step = self._network_step(problem) if problem.case.kind == "network" else self._operator_step(problem)

        def call() -> object:
            with self._forced():
                return step()

        def outputs() -> list[torch.Tensor]:
            with self._forced():
                return step.outputs()

        if self.graph:
            with problem.mode():
                ran = _counted(call)  # a replay launches what was captured and counts nothing
            with self._forced():
                return dataclasses.replace(captured(problem, step), ran=lambda: ran)
        return Prepared(call if self.backend else step, outputs, layout_name(True), ran=lambda: _counted(call))

    def _forced(self) -> contextlib.AbstractContextManager[None]:
        return backends.use_backend(self.backend) if self.backend else contextlib.nullcontext()

    def _network_step(self, problem: Problem) -> Step:
        module = problem.copy_of_module(channels_last=True)
        x = problem.copy_of_input(channels_last=True)
        with self._forced():
            ik.swap(module, tune=x if self.tune else None)
        return problem.step(module, x, tuple(module.parameters()))

    def _operator_step(self, problem: Problem) -> Step:
        # Contiguous weights, as a user has them: the layout that the kernels want is their own business.
        module = problem.copy_of_module()
        plain = cast(Fusable, module)
        device = torch.device(problem.device).type
        compiled = self.backend == device or (self.backend is None and device == "cpu")
        function = plain.prepared() if compiled and not problem.case.training else plain.fused()
        return problem.step(function, problem.copy_of_input(channels_last=True), tuple(module.parameters()))


class Optimised:
    """The whole network in one operator: `inception_kernels.optimize`."""

    role = OURS
    name = "inception_kernels:optimize"

    def unfit(self, case: Case) -> Unfit | None:
        if case.kind != "network":
            return Unfit(NOT_APPLICABLE, "optimize is for networks")
        if case.training:
            return Unfit(NOT_APPLICABLE, "an optimised network does not train")
        if not _extension.available:
            return Unfit(NOT_APPLICABLE, f"{_extension.reason}")
        return None

    def prepare(self, problem: Problem) -> Prepared:
        x = problem.copy_of_input(channels_last=True)
        network = ik.optimize(problem.copy_of_module(), example_input=x)
        step = problem.step(network, x, ())
        outputs = sum(output.nbytes for output in step.outputs())
        arenas = [program.plan.arena_bytes for program, _ in network.programs(x)]
        return Prepared(
            step,
            step.outputs,
            layout_name(True),
            ran=lambda: _counted(step),
            peak_bytes=max(arenas, default=0) + outputs,
            memory_method=memory.PLANNED,
            torch_profiler=False,
        )


def _counted(call) -> str:
    """The kernels that one call counts, and how often."""
    before = backends.counters()
    call()
    after = backends.counters()
    ran = {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}
    return ", ".join(f"{name} x{count}" for name, count in sorted(ran.items()))
