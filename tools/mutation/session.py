"""Runs the tests of one operator against its mutants: all mutants are in one library, each is tested in a fork."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import host_cuda
import pytest
import torch
from _pytest.runner import runtestprotocol

from tools.mutation.sites import Site

_SURVIVED = "survived"


@dataclass
class Verdict:
    site: Site
    found_by: str = ""  # "" survived; "report: <kind>", "numbers", "crash", "timeout"
    executed: bool = False
    seconds: float = 0.0
    op: str = ""  # whose tests say so


@dataclass
class _Timed:
    item: pytest.Item
    seconds: float
    executed: frozenset[int]


class _Switch:
    """The mutants of the libraries that the tests have loaded."""

    def __init__(self) -> None:
        self._libraries: dict[Path, ctypes.CDLL] = {}
        load_module = host_cuda.load_module

        def load(name: str, library: Path) -> Any:
            module = load_module(name, library)
            self._libraries[library] = ctypes.CDLL(str(library))
            self._libraries[library].ik_executed.restype = ctypes.POINTER(ctypes.c_ubyte)
            return module

        host_cuda.load_module = load

    def activate(self, number: int) -> None:
        for library in self._libraries.values():
            library.ik_activate(number)

    def forget(self) -> None:
        for library in self._libraries.values():
            library.ik_forget_executed()

    def executed(self, numbers: Sequence[int]) -> frozenset[int]:
        marks = [library.ik_executed() for library in self._libraries.values()]
        return frozenset(number for number in numbers if any(mark[number] for mark in marks))


@dataclass
class Session:
    """A pytest plugin; `verdicts` are there when pytest has ended."""

    op: str
    sites: dict[int, Site]
    jobs: int
    suite: float  # processor seconds of tests to take part, one of each test function after the other
    budget: float  # processor seconds of tests for one mutant, the quick ones first
    progress: Callable[[Verdict], None]
    verdicts: list[Verdict] = field(default_factory=list)

    def run(self, tests: Sequence[str]) -> int:
        self._switch = _Switch()
        return pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests], plugins=[self])

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        torch.set_num_threads(1)  # threads do not survive a fork
        numbers = list(self.sites)
        passing = list(self._baseline(session.items, numbers))
        passing.sort(key=lambda timed: timed.seconds)
        todo = list(numbers)
        running: dict[int, tuple[int, float, Verdict]] = {}  # pipe: pid, started
        while todo or running:
            while todo and len(running) < self.jobs:
                self._start(todo.pop(0), passing, running)
            self._collect(running)
        return True

    def _baseline(self, items: Sequence[pytest.Item], numbers: Sequence[int]) -> Iterator[_Timed]:
        """Tests that pass without a mutant, what they execute and how long they take."""
        spent = 0.0
        for item in _round_robin(items):
            if spent > self.suite:
                return
            self._switch.forget()
            started = time.process_time()
            failures = _failures(item)
            if failures:
                raise RuntimeError(f"{item.nodeid} fails without a mutant: {failures}")
            seconds = time.process_time() - started
            spent += seconds
            yield _Timed(item, seconds, self._switch.executed(numbers))

    def _start(self, number: int, passing: Sequence[_Timed], running: dict[int, tuple[int, float, Verdict]]) -> None:
        tests = self._within_budget([timed for timed in passing if number in timed.executed])
        verdict = Verdict(self.sites[number], executed=bool(tests), op=self.op)
        if not tests:
            self._finish(verdict)
            return
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _test_mutant(self._switch, number, tests, writing)
        os.close(writing)
        running[reading] = (pid, time.perf_counter(), verdict)

    def _within_budget(self, tests: Sequence[_Timed]) -> list[_Timed]:
        ends = itertools.accumulate(timed.seconds for timed in tests)
        return [timed for i, (timed, end) in enumerate(zip(tests, ends, strict=True)) if i == 0 or end <= self.budget]

    def _collect(self, running: dict[int, tuple[int, float, Verdict]]) -> None:
        if not running:
            return
        ready, _, _ = select.select(list(running), [], [], 0.5)
        for pipe in ready:
            pid, started, verdict = running.pop(pipe)
            outcome = os.read(pipe, 4096).decode()
            os.close(pipe)
            _, status = os.waitpid(pid, 0)
            out_of_time = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
            verdict.found_by = outcome or ("timeout" if out_of_time else "crash")
            if outcome == _SURVIVED:
                verdict.found_by = ""
            verdict.seconds = time.perf_counter() - started
            self._finish(verdict)

    def _finish(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        self.progress(verdict)


def _round_robin(items: Sequence[pytest.Item]) -> Iterator[pytest.Item]:
    """The first parameters of every test function, then the second ones, and so on."""
    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        functions.setdefault(item.nodeid.split("[")[0], []).append(item)
    for row in itertools.zip_longest(*functions.values()):
        yield from (item for item in row if item is not None)


def _failures(item: pytest.Item) -> str:
    """How the test fails; empty where it passes or is skipped."""
    for report in runtestprotocol(item, log=False, nextitem=None):
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            return str(crash.message if crash else report.longrepr)
    return ""


def _test_mutant(switch: _Switch, number: int, tests: Sequence[_Timed], pipe: int) -> None:
    """In a fork: writes what found the mutant, and ends the process."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    result = _SURVIVED
    try:
        switch.activate(number)
        for timed in tests:
            _limit_processor_time(5 + 3 * timed.seconds)
            if failure := _failures(timed.item):
                result = _kind(failure)
                break
        os.write(pipe, result.encode())
    finally:
        os._exit(0)


def _limit_processor_time(seconds: float) -> None:
    """The process ends that much later, of its own processor time."""
    end = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))


def _kind(failure: str) -> str:
    if "KernelReport" not in failure:
        return "numbers"
    lines = [line for line in failure.splitlines()[1:] if line.strip()]
    return "report: " + lines[0].split(" at ")[0].split(":")[0] if lines else "report"
