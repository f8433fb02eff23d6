"""Fixtures and settings of every test."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from instruction_sets import runs_here

from inception_kernels import _extension, backends, roofline
from inception_kernels.models.loading import make_torchvision_importable

make_torchvision_importable()  # before any test imports torchvision or what is built on it
torch.set_num_threads(2)

_THIRD_PARTY = (
    "torchvision",
    "timm",
    "pretrainedmodels",
    "segmentation_models_pytorch",
    "pytorch_fid",
    "torch_fidelity",
    "torchmetrics",
)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--require-third-party") and not _extension.available:
        raise pytest.UsageError(f"CI tests the compiled kernels, and they are not there: {_extension.reason}")
    config.addinivalue_line(
        "markers",
        "third_party(*modules): needs these packages; with --require-third-party their lack is a failure",
    )
    if config.getoption("--record-launches"):
        import host_cuda

        host_cuda.executes = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A recording is no test run: no kernel is executed, so a comparison of its results fails, and nothing else may. Not
    # strict, because a test that looks at launches alone passes.
    if config.getoption("--record-launches"):
        for item in items:
            item.add_marker(pytest.mark.xfail(raises=AssertionError, reason="launched, not executed", strict=False))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-third-party",
        action="store_true",
        help="fail where a test's third-party package is missing, instead of skipping (CI passes this)",
    )
    parser.addoption(
        "--record-launches",
        type=Path,
        help="a JSON file to put the dynamic shared memory into that CUDA kernels are launched with on the host; "
        "they are not executed, and tests that compare numbers fail as expected",
    )
    parser.addoption(
        "--all-layers",
        action="store_true",
        help="execute the CUDA kernels on the networks' layers in every dtype and mode, not a part of them (hours)",
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--record-launches")
    if path is not None:
        import host_cuda

        from tools.cubin_gates import launches

        launches.record(path, host_cuda.most_shared)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Without --all-layers `layer_dtype` is the first of the module's LAYER_DTYPES, and `some_layer` every fourth name
    of its LAYERS."""
    everything = metafunc.config.getoption("--all-layers")
    if "layer_dtype" in metafunc.fixturenames:
        dtypes = metafunc.module.LAYER_DTYPES
        metafunc.parametrize("layer_dtype", dtypes if everything else dtypes[:1])
    if "some_layer" in metafunc.fixturenames:
        metafunc.parametrize("some_layer", list(metafunc.module.LAYERS)[:: 1 if everything else 4])


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("third_party"):
        missing = [module for module in marker.args or _THIRD_PARTY if importlib.util.find_spec(module) is None]
        if missing:
            message = f"not installed: {', '.join(missing)} (pip install --no-deps -r requirements/models.txt)"
            if item.config.getoption("--require-third-party"):
                pytest.fail(message)
            pytest.skip(message)


@pytest.fixture
def use_isa() -> Iterator[Callable[[str], None]]:
    """Call it to make an instruction set the one in force; a test that asks for more than the processor has is skipped.

    Such instructions would end the process; their kernels are compiled all the same. What the processor has is read
    from the system, so that kernels which wrongly refuse to run fail the test.
    """
    before = backends.cpu_isa()

    def use(name: str) -> None:
        if not runs_here(name):
            pytest.skip(f"this processor has no {name}")
        backends.set_cpu_isa(name)

    yield use
    backends.set_cpu_isa(before)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors that nobody has written hold NaN (integers: the largest value), also those made in C++.

    A kernel that leaves one output element unwritten, or reads one that it has not written, then shows in any
    comparison. Use with `@pytest.mark.usefixtures("poisoned_memory")` or autouse in a module.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    if _extension.available:
        torch.ops.inception_kernels._fill_memory(True)
    assert torch.empty(3).isnan().all(), "this torch does not fill new memory"
    yield
    if _extension.available:
        torch.ops.inception_kernels._fill_memory(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small layers: on a busy machine, threads that wait for each other take far longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's roofline from tiny probes: these tests do not look at speed."""
    monkeypatch.setattr(roofline, "_PRODUCTS", {"cpu": ((16, 16, 16),)})
    monkeypatch.setattr(roofline, "_COPIES", {"cpu": (2**12, 2**14)})
    monkeypatch.setattr(roofline.measure, "__defaults__", ("cpu", ("float32", "bfloat16"), 1e-4))
