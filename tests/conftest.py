"""Fixtures and settings of every test."""

import importlib.util
from collections.abc import Iterator

import pytest
import torch

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
    from inception_kernels import _extension

    if config.getoption("--require-third-party") and not _extension.available:
        raise pytest.UsageError(f"CI tests the compiled kernels, and they are not there: {_extension.reason}")
    config.addinivalue_line(
        "markers",
        "third_party(*modules): needs these packages; with --require-third-party their lack is a failure",
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-third-party",
        action="store_true",
        help="fail where a test's third-party package is missing, instead of skipping (CI passes this)",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("third_party"):
        missing = [module for module in marker.args or _THIRD_PARTY if importlib.util.find_spec(module) is None]
        if missing:
            message = f"not installed: {', '.join(missing)} (pip install --no-deps -r requirements/models.txt)"
            if item.config.getoption("--require-third-party"):
                pytest.fail(message)
            pytest.skip(message)


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
    assert torch.empty(3).isnan().all(), "this torch does not fill new memory"
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small layers: on a busy machine, threads that wait for each other take far longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
