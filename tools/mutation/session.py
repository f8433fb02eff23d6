"""Runs the tests of one operator against its mutants: all mutants are in one library, each is tested in a fork."""

from __future__ import annotations

import ctypes
import itertools
import os
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


@dataclass
class Verdict:
    site: Site
    found_by: str = ""  # "" survived; "report: <kind>", "numbers", "crash", "timeout"
    executed: bool = False
    seconds: float = 0.0


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

    sites: dict[int, Site]
    jobs: int
    budget: float  # seconds of tests for one mutant, the quick ones first
    progress: Callable[[Verdict], None]
    verdicts: list[Verdict] = field(default_factory=list)

    def run(self, tests: Sequence[str]) -> int:
        torch.set_num_threads(1)
        self._switch = _Switch()
        return pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests], plugins=[self])

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        numbers = sorted(self.sites)
        passing = list(self._baseline(session.items, numbers))
        passing.sort(key=lambda timed: timed.seconds)
        todo = list(numbers)
        running: dict[int, tuple[int, float, float, Verdict]] = {}  # pipe: pid, started, limit
        while todo or running:
            while todo and len(running) < self.jobs:
                self._start(todo.pop(0), passing, running)
            self._collect(running)
        return True

    def _baseline(self, items: Sequence[pytest.Item], numbers: Sequence[int]) -> Iterator[_Timed]:
        """The tests that pass without a mutant, what they execute and how long they take."""
        for item in items:
            self._switch.forget()
            started = time.perf_counter()
            failures = _failures(item)
            if failures:
                raise RuntimeError(f"{item.nodeid} fails without a mutant: {failures}")
            yield _Timed(item, time.perf_counter() - started, self._switch.executed(numbers))

    def _start(
        self, number: int, passing: Sequence[_Timed], running: dict[int, tuple[int, float, float, Verdict]]
    ) -> None:
        tests = self._within_budget([timed for timed in passing if number in timed.executed])
        verdict = Verdict(self.sites[number], executed=bool(tests))
        if not tests:
            self._finish(verdict)
            return
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _test_mutant(self._switch, number, tests, writing)
        os.close(writing)
        limit = 10 + 5 * sum(timed.seconds for timed in tests)
        running[reading] = (pid, time.perf_counter(), limit, verdict)

    def _within_budget(self, tests: Sequence[_Timed]) -> list[_Timed]:
        ends = itertools.accumulate(timed.seconds for timed in tests)
        return [timed for i, (timed, end) in enumerate(zip(tests, ends, strict=True)) if i == 0 or end <= self.budget]

    def _collect(self, running: dict[int, tuple[int, float, float, Verdict]]) -> None:
        if not running:
            return
        ready, _, _ = select.select(list(running), [], [], 0.5)
        for pipe, (pid, started, limit, verdict) in list(running.items()):
            elapsed = time.perf_counter() - started
            if pipe in ready:
                verdict.found_by = os.read(pipe, 4096).decode() or "crash"
                if verdict.found_by == "survived":
                    verdict.found_by = ""
            elif elapsed > limit:
                os.kill(pid, signal.SIGKILL)
                verdict.found_by = "timeout"
            else:
                continue
            os.waitpid(pid, 0)
            os.close(pipe)
            del running[pipe]
            verdict.seconds = elapsed
            self._finish(verdict)

    def _finish(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        self.progress(verdict)


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
    result = "survived"
    try:
        switch.activate(number)
        for timed in tests:
            if failure := _failures(timed.item):
                result = _kind(failure)
                break
        os.write(pipe, result.encode())
    finally:
        os._exit(0)


def _kind(failure: str) -> str:
    if "KernelReport" not in failure:
        return "numbers"
    lines = [line for line in failure.splitlines()[1:] if line.strip()]
    return "report: " + lines[0].split(" at ")[0].split(":")[0] if lines else "report"
