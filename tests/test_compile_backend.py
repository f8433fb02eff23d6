"""`torch.compile(model, backend="inception_kernels")`."""

from __future__ import annotations

import logging

import pytest
import torch
from helpers import assert_as_accurate, needs_kernels, randomize_batch_norm
from swap_models import Branches, Residual
from torch import nn

from inception_kernels import backends
from inception_kernels.graph import compiled_graphs
from inception_kernels.graph import module as graph_module
from inception_kernels.graph.compile_backend import NAME, register

pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def fresh():
    register()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomize_batch_norm(Residual(), example_input=torch.randn(2, 3, 43, 43)).eval()


def check(model: nn.Module, fast, x: torch.Tensor) -> None:
    with torch.no_grad():
        backends.reset_counters()
        actual = fast(x)
        ran = backends.counters()
        baseline = model(x)
        exact = model.double()(x.double())
        model.float()
    assert any("conv2d_bn_act.forward" in name for name in ran), ran
    assert_as_accurate(actual, baseline, exact)


def test_it_is_in_the_list():
    assert NAME in torch._dynamo.list_backends()


def test_inference_with_several_shapes(model):
    fast = torch.compile(model, backend=NAME)
    for shape in ((2, 3, 43, 43), (3, 3, 43, 43), (4, 3, 51, 47)):
        check(model, fast, torch.randn(shape))


def test_parameters_that_change(model):
    fast = torch.compile(model, backend=NAME)
    x = torch.randn(2, 3, 43, 43)
    check(model, fast, x)
    with torch.no_grad():
        model.fc.bias.add_(1)
    check(model, fast, x)
    model.bn1.running_mean = torch.randn(8)
    check(model, fast, x)
    model.fc = nn.Linear(16, 7)
    check(model, fast, x)


def test_parameters_that_change_through_data(model):
    fast = torch.compile(model, backend=NAME)
    x = torch.randn(2, 3, 43, 43)
    check(model, fast, x)
    model.fc.weight.data.mul_(2)
    model.fc.bias.data.add_(1)
    check(model, fast, x)


def test_parameters_that_count_no_writes_run_as_pytorch():
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
        fast = torch.compile(model, backend=NAME)
        x = torch.randn(2, 3, 9, 9)
        assert torch.equal(fast(x), model(x))
        model[0].weight.mul_(2)
        assert torch.equal(fast(x), model(x))
    assert any("inference_mode" in graph.declined for graph in compiled_graphs())


@pytest.fixture
def captures(monkeypatch) -> list[int]:
    """Grows by one for each network that torch.export is asked for."""
    asked: list[int] = []
    capture = graph_module.capture
    monkeypatch.setattr(graph_module, "capture", lambda *args: asked.append(1) or capture(*args))
    return asked


def test_batch_sizes_that_come_back_are_not_captured_again(model, captures):
    fast = torch.compile(model, backend=NAME)
    seen = []
    with torch.no_grad():
        for batch in (2, 3, 4, 5, 2, 3, 4, 5):
            x = torch.randn(batch, 3, 43, 43)
            torch.testing.assert_close(fast(x), model(x))
            seen.append(len(captures))
    assert seen[-1] == seen[3]


def test_what_cannot_be_captured_is_not_tried_again(captures):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    fast = torch.compile(model, backend=NAME)
    with torch.no_grad():
        for _ in range(3):
            fast(torch.randn(2, 3, 9, 9))
    assert len(captures) == 1


def test_wanted_gradients_run_as_pytorch_with_the_reason(model, caplog):
    fast = torch.compile(model, backend=NAME)
    x = torch.randn(2, 3, 43, 43)
    with caplog.at_level(logging.WARNING, "inception_kernels"):
        y = fast(x)
        fast(x)
    assert torch.equal(y, model(x))
    y.sum().backward()
    assert model.fc.weight.grad is not None
    assert [record.getMessage() for record in caplog.records if "gradients are wanted" in record.getMessage()]
    assert len(caplog.records) == 1, "once per graph and reason"
    assert any("gradients are wanted" in str(graph) for graph in compiled_graphs())
    check(model, fast, x)  # and without them it runs
    assert any("1 program(s)" in str(graph) for graph in compiled_graphs())


def test_training_runs_as_pytorch():
    model = Branches()
    fast = torch.compile(model, backend=NAME)
    x = torch.randn(4, 3, 23, 23)
    batches = model.stem.bn.num_batches_tracked.clone()
    with torch.no_grad():
        fast(x)
    assert model.stem.bn.num_batches_tracked == batches + 1
    assert any("changes" in graph.declined for graph in compiled_graphs()), [str(g) for g in compiled_graphs()]


def test_autocast_runs_as_pytorch(model):
    fast = torch.compile(model, backend=NAME)
    x = torch.randn(2, 3, 43, 43)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert fast(x).dtype == torch.bfloat16
    assert any("autocast" in graph.declined for graph in compiled_graphs())


def test_a_function_with_a_graph_break(model):
    @torch.compile(backend=NAME)
    def twice(x: torch.Tensor) -> torch.Tensor:
        y = model(x)
        torch._dynamo.graph_break()
        return model(x) + y

    x = torch.randn(2, 3, 43, 43)
    with torch.no_grad():
        torch.testing.assert_close(twice(x), 2 * model(x))
