"""What the harness asks of an implementation that it races."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from inception_kernels.bench.problem import Case, Problem
from inception_kernels.bench.row import BASELINE


@dataclass
class Prepared:
    """An implementation made ready for one problem.

    `call` is what is timed. `outputs` runs it once: the output, in training then the gradients. `ran` names the kernels
    where the implementation knows better than torch's profiler; `peak_bytes` likewise.
    """

    call: Callable[[], object]
    outputs: Callable[[], list[Tensor]]
    layout: str
    ran: Callable[[], str] | None = None
    peak_bytes: int | None = None
    memory_method: str = ""
    torch_profiler: bool = True


@dataclass(frozen=True)
class Unfit:
    """Why an implementation has no time: a status of `row` and a reason."""

    status: str
    reason: str


class Contender(Protocol):
    name: str
    role: str

    def unfit(self, case: Case) -> Unfit | None:
        """None where this implementation can be raced on the case."""

    def prepare(self, problem: Problem) -> Prepared:
        """Everything that is done once: convert, compile, pack, warm up. May raise: that becomes the row's reason."""


class Baseline:
    """A contender that is not ours and fits every case."""

    name: str
    role = BASELINE

    def unfit(self, case: Case) -> Unfit | None:
        return None
