"""From a regular to a depthwise-separable convolution (Chollet 2017, section 1.2): 128 channels at 19 x 19 in segments.

Both orders, on the fused operators and on plain PyTorch. `--batches`, `--dtypes`, `--device` and `--threads` count.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from inception_kernels import backends, flops
from inception_kernels.models.xception_blocks import ORDERS, SegmentedConv2d

CHANNELS, SIZE = 128, 19


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, option in (("batch", "batches"), ("dtype", "dtypes")):
        metafunc.parametrize(name, metafunc.config.getoption(option).split(","))


@pytest.mark.parametrize("backend", ["reference", "automatic"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("segments", [1, 2, 4, 16, 64, CHANNELS])
def bench_segments(
    segments: int, order: str, backend: str, batch: str, dtype: str, benchmark: BenchmarkFixture,
    pytestconfig: pytest.Config,
) -> None:  # fmt: skip
    if pytestconfig.getoption("threads") is not None:
        torch.set_num_threads(pytestconfig.getoption("threads"))
    torch.manual_seed(0)
    device, kind = pytestconfig.getoption("device"), getattr(torch, dtype)
    block = SegmentedConv2d(CHANNELS, CHANNELS, segments, order=order, activation="relu").eval()
    x = torch.randn(int(batch), CHANNELS, SIZE, SIZE).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        block, x = block.to(device, kind), x.to(device, kind)
        exact = _run(block.double(), x.double(), "reference")
        block = block.to(kind)
        error = (_run(block, x, backend).double() - exact).abs().max()
        torchs = (_run(block, x, "reference").double() - exact).abs().max()
        assert error <= 2 * torchs + 4 * torch.finfo(kind).eps * exact.abs().max(), (
            "too far from float64: no time for it"
        )
        benchmark.group = f"{order}, {segments} segments, batch {batch}, {dtype}"
        benchmark.extra_info.update(gflop=2e-9 * flops.count(block, x).macs, backend=backend)
        benchmark(_run, block, x, backend)


def _run(block: SegmentedConv2d, x: torch.Tensor, backend: str) -> torch.Tensor:
    if backend == "automatic":
        y = block(x)
    else:
        with backends.use_backend(backend):
            y = block(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return y
