"""The CUDA kernel of the running statistics, executed on the host."""

import host_cuda
import pytest
import torch
from helpers import assert_as_accurate


@pytest.fixture(scope="module")
def host():
    return host_cuda.load("update_running_statistics", checked=True)


@pytest.mark.parametrize("schedule", host_cuda.SCHEDULES, ids=lambda schedule: f"order{schedule.order}")
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.5, 0.9997, 1.0])
@pytest.mark.parametrize("K", [1, 17, 128, 300])
def test_against_float64(host, K, momentum, schedule):
    g = torch.Generator().manual_seed(K)
    mean, var, running_mean, running_var = (torch.rand(K, generator=g) for _ in range(4))
    wide = [t.double() for t in (running_mean, running_var, mean, var)]
    baseline = running_mean.lerp(mean, momentum), running_var.lerp(var * (7 / 6), momentum)
    batches = torch.tensor([2**40])
    host.on(schedule).update_running_statistics(running_mean, running_var, batches, mean, var, momentum, 7)
    exact = [wide[0] + momentum * (wide[2] - wide[0]), wide[1] + momentum * (wide[3] * 7 / 6 - wide[1])]
    for got, theirs, truth in zip((running_mean, running_var), baseline, exact, strict=True):
        assert_as_accurate(got, theirs, truth)
    assert batches.item() == 2**40 + 1


def test_the_ends_are_exact_and_nothing_is_counted_where_nothing_counts(host):
    for momentum, kept in ((0.0, True), (1.0, False)):
        running, var, mean = torch.rand(33), torch.rand(33), torch.rand(33)
        before = running.clone()
        host.update_running_statistics(running, var, None, mean, torch.rand(33), momentum, 2**40)
        assert torch.equal(running, before if kept else mean)


def test_no_channels(host):
    batches = torch.tensor([3])
    none = torch.empty(0)
    host.update_running_statistics(none, none.clone(), batches, none.clone(), none.clone(), 0.1, 7)
    assert batches.item() == 4
