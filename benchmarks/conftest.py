"""Options and the one body of every suite here: the cases and implementations of `inception_kernels.bench`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from inception_kernels.bench import Config
from inception_kernels.bench.cases import cases
from inception_kernels.bench.config import OPERATORS
from inception_kernels.bench.contenders import Contender, Eager, contenders
from inception_kernels.bench.contenders.compiled import forget_compiled
from inception_kernels.bench.harness import BASELINE_LENIENCE
from inception_kernels.bench.problem import Case, Problem
from inception_kernels.bench.row import BASELINE

_LISTS = {"batches": "1", "dtypes": "float32,bfloat16", "passes": "inference", "backends": "eager,inception_kernels"}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("inception_kernels")
    for name, default in _LISTS.items():
        group.addoption(f"--{name}", default=default, help=f"separated by commas (default: {default})")
    group.addoption("--layers", type=int, default=4, help="per operator, those with the most work (default: 4)")
    group.addoption("--device", default="cpu")
    group.addoption("--threads", type=int, default=None)


def config_of(options: pytest.Config, **chosen: tuple[str, ...]) -> Config:
    words = {name: tuple(options.getoption(name).split(",")) for name in _LISTS}
    return Config(
        batches=tuple(map(int, words.pop("batches"))),
        layers=options.getoption("layers"),
        device=options.getoption("device"),
        threads=options.getoption("threads"),
        **words,
        **chosen,
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A suite says what it measures: `OPERATOR = "<operator>"`, or nothing for whole networks."""
    if "contender" not in metafunc.fixturenames:  # a suite with cases of its own
        return
    operator = getattr(metafunc.module, "OPERATOR", None)
    config = config_of(
        metafunc.config,
        kinds=("network",) if operator is None else ("operator",),
        operators=OPERATORS if operator is None else (operator,),
    )
    chosen = [each for each in contenders(config) if each.name in config.backends]
    metafunc.parametrize(
        ("case", "contender"),
        [
            pytest.param(case, each, id=f"{case.name}-b{case.batch}-{case.dtype}-{case.pass_}-{each.name}")
            for case in cases(config)
            for each in chosen
        ],
    )


@pytest.fixture
def measure(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Callable[[Case, Contender], None]:
    """Time one implementation of one case, once its answer is as right as the harness asks."""

    def run(case: Case, contender: Contender) -> None:
        threads = pytestconfig.getoption("threads")
        if threads is not None:
            torch.set_num_threads(threads)
        unfit = contender.unfit(case)
        if unfit is not None:
            pytest.skip(f"{unfit.status}: {unfit.reason}")
        problem = Problem(case, pytestconfig.getoption("device"))
        eager, prepared = Eager().prepare(problem), contender.prepare(problem)
        with problem.mode():
            allowed = 2 * problem.error(eager.outputs()) + 4 * torch.finfo(case.torch_dtype).eps
            if contender.role == BASELINE:
                allowed *= BASELINE_LENIENCE
            error = problem.error(prepared.outputs())
            assert error <= allowed, f"error {error:.1e} against float64, {allowed:.1e} allowed: no time for it"
            benchmark.group = f"{case.name}, batch {case.batch}, {case.dtype}, {case.pass_}"
            benchmark.extra_info.update(
                gflop=2e-9 * sum(macs for macs, _ in case.work), error=error, layout=prepared.layout
            )
            benchmark(_synchronised(prepared.call, problem.device))
        forget_compiled()

    return run


def _synchronised(call: Callable[[], object], device: str) -> Callable[[], object]:
    if not device.startswith("cuda"):
        return call

    def wait() -> None:
        call()
        torch.cuda.synchronize()

    return wait
