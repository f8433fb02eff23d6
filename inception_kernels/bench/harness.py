"""Race every implementation on every case, in turns, and make rows of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from inception_kernels import roofline
from inception_kernels.bench import environment, memory, timing
from inception_kernels.bench.cases import cases as default_cases
from inception_kernels.bench.config import Config
from inception_kernels.bench.contenders import EAGER, Contender, Prepared, Unfit
from inception_kernels.bench.contenders import contenders as default_contenders
from inception_kernels.bench.contenders.compiled import forget_compiled
from inception_kernels.bench.problem import Case, Problem
from inception_kernels.bench.row import BASELINE, FAILED, LEFT_OUT, OK, OURS, WITHHELD, Environment, Row

BASELINE_LENIENCE = 10.0

logger = logging.getLogger("inception_kernels")


class Progress(Protocol):
    def step(self, done: int, total: int, what: str) -> None:
        """Called before each case and before each implementation of it is made ready."""


class Silent:
    def step(self, done: int, total: int, what: str) -> None:
        pass


@dataclass
class _Entry:
    """One implementation of one case while it is measured."""

    contender: Contender
    prepared: Prepared | None = None
    unfit: Unfit | None = None
    error: float | None = None
    peak_bytes: int | None = None
    memory_method: str = ""
    ran: str = ""
    timing: timing.Timing | None = None


def run(
    config: Config,
    cases: Sequence[Case] | None = None,
    contenders: Sequence[Contender] | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Measure and return one row per case and implementation; none is left out silently.

    Args:
        config: what to measure; see `Config`.
        cases, contenders: instead of those that `config` asks for.
        progress: told what is being done.

    Raises:
        ValueError: `config` asks for a device or a backend that is not there.
    """
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"expected a device that this torch can use, got {config.device!r}: use --device cpu")
    progress = progress or Silent()
    with _settings(config):
        wanted = list(default_cases(config) if cases is None else cases)
        racers = list(default_contenders(config) if contenders is None else contenders)
        where = environment.capture(config.device)
        progress.step(0, len(wanted), "probing the machine")
        start = roofline.measure(config.device, config.dtypes)
        begun = time.monotonic()
        measured: list[tuple[Case, list[_Entry]]] = []
        for index, case in enumerate(wanted):
            label = f"{case.name}, batch {case.batch}, {case.dtype}, {case.pass_}"
            spent = time.monotonic() - begun
            if config.max_seconds is not None and spent > config.max_seconds:
                reason = f"the run's limit of {config.max_seconds:g} s was reached"
                measured.append((case, [_Entry(each, unfit=Unfit(LEFT_OUT, reason)) for each in racers]))
                continue
            tell = functools.partial(_tell, progress, index, len(wanted), label)
            measured.append((case, _race(case, racers, config, tell)))
        progress.step(len(wanted), len(wanted), "probing the machine")
        end = roofline.measure(config.device, config.dtypes)
    where = dataclasses.replace(where, roofline_start=start.to_dict(), roofline_end=end.to_dict())
    best = start.best_of(end)
    return [row for case, entries in measured for row in _rows(case, entries, best, where)]


def _tell(progress: Progress, done: int, total: int, label: str, what: str) -> None:
    progress.step(done, total, f"{label}: {what}")


def _race(case: Case, racers: Sequence[Contender], config: Config, say: Callable[[str], None]) -> list[_Entry]:
    """Make everyone ready, check their answers, then time in turns those whose answers are right."""
    problem = Problem(case, config.device, config.seed)
    entries = []
    for contender in racers:
        say(contender.name)
        entries.append(_ready(contender, problem))
    _judge(problem, entries)
    with problem.mode():
        going = {each.contender.name: each for each in entries if each.unfit is None and each.prepared is not None}
        calls = {name: entry.prepared.call for name, entry in going.items() if entry.prepared is not None}
        clock = timing.CudaClock() if problem.device.startswith("cuda") else timing.CpuClock()
        say("timing")
        limits = (config.rounds, config.slot_seconds)
        samples = timing.interleave(calls, *limits, clock, limit_seconds=config.case_seconds) if calls else {}
    for name, entry in going.items():
        entry.timing = timing.summarize(samples[name])
    for entry in entries:
        if entry.prepared is not None:
            entry.prepared = dataclasses.replace(entry.prepared, call=lambda: None, outputs=list)
    forget_compiled()
    gc.collect()
    return entries


def _ready(contender: Contender, problem: Problem) -> _Entry:
    entry = _Entry(contender, unfit=contender.unfit(problem.case))
    if entry.unfit is not None:
        return entry
    try:
        prepared = contender.prepare(problem)
        with problem.mode():
            entry.error = problem.error(prepared.outputs())
            if prepared.torch_profiler:
                profiled = memory.profile(prepared.call, problem.device)
                entry.peak_bytes, entry.memory_method = profiled.peak_bytes, profiled.method
                entry.ran = profiled.ran
            else:
                entry.peak_bytes, entry.memory_method = prepared.peak_bytes, prepared.memory_method
            if prepared.ran is not None:
                entry.ran = prepared.ran()
        entry.prepared = prepared
    except Exception as error:  # whatever a peer raises becomes its row: one failure must not end the run
        logger.debug("%s on %s", contender.name, problem.case, exc_info=True)
        lines = str(error).strip().splitlines()
        entry.unfit = Unfit(FAILED, f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}")
    return entry


def _judge(problem: Problem, entries: Sequence[_Entry]) -> None:
    """No green test, no number: whose error is above what is allowed is not timed."""
    for entry in entries:
        allowed = _allowed(problem.case, entry, entries)
        if allowed is None or entry.error is None or entry.error <= allowed:
            continue  # (a NaN is not <= anything)
        reason = f"error {entry.error:.1e} against float64, {allowed:.1e} allowed"
        entry.unfit = entry.unfit or Unfit(WITHHELD, reason)


def _allowed(case: Case, entry: _Entry, entries: Sequence[_Entry]) -> float | None:
    """Twice eager PyTorch's error in this dtype, and four units in the last place; None where eager has none.

    A baseline has ten times that: one that rounds a little more than eager must not leave the race in our favour.
    """
    eager = next((each.error for each in entries if each.contender.name == EAGER), None)
    if eager is None:
        return None
    ours = 2.0 * eager + 4.0 * torch.finfo(case.torch_dtype).eps
    return ours if entry.contender.role == OURS else BASELINE_LENIENCE * ours


def _rows(case: Case, entries: Sequence[_Entry], machine: roofline.Roofline, where: Environment) -> Iterator[Row]:
    macs = sum(layer[0] for layer in case.work)
    moved = sum(layer[1] for layer in case.work)
    floor = machine.network_floor(case.work, case.dtype)
    baselines = {
        each.contender.name: each.timing.median
        for each in entries
        if each.timing is not None and each.contender.role == BASELINE
    }
    for entry in entries:
        time_ms = entry.timing.median if entry.timing else None
        yield Row(
            case=case.name,
            kind=case.kind,
            operator=case.operator,
            shape=case.shape,
            batch=case.batch,
            dtype=case.dtype,
            autocast=case.autocast,
            pass_=case.pass_,
            backend=entry.contender.name,
            role=entry.contender.role,
            layout=entry.prepared.layout if entry.prepared else "",
            status=entry.unfit.status if entry.unfit else OK,
            reason=entry.unfit.reason if entry.unfit else "",
            median_ms=time_ms,
            p10_ms=entry.timing.p10 if entry.timing else None,
            p90_ms=entry.timing.p90 if entry.timing else None,
            samples=entry.timing.samples if entry.timing else 0,
            gmac=macs / 1e9,
            gflop=2 * macs / 1e9,
            tflops=2 * macs / time_ms / 1e9 if time_ms else None,
            intensity=2 * macs / moved,
            roofline_percent=100 * floor.seconds * 1e3 / time_ms if time_ms else None,
            bound=floor.bound,
            speedup={name: baseline / time_ms for name, baseline in baselines.items()} if time_ms else {},
            peak_memory_mib=entry.peak_bytes / 2**20 if entry.peak_bytes is not None else None,
            memory_method=entry.memory_method,
            error=entry.error,
            error_allowed=_allowed(case, entry, entries),
            ran=entry.ran,
            environment=where,
        )


@contextlib.contextmanager
def _settings(config: Config) -> Iterator[None]:
    """Threads and autotuning for the whole run, the same for everyone, put back afterwards."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.backends.cudnn.benchmark = config.device.startswith("cuda")
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark


__all__ = ["OURS", "Progress", "Silent", "run"]
