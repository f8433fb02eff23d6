"""Pools of swapped models: operators on the CPU, PyTorch everywhere else, and `explain` says which."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_as_accurate, needs_kernels
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import inception_kernels as ik
from inception_kernels import backends
from inception_kernels.models.inception_v3 import inception_v3
from inception_kernels.models.xception import xception
from inception_kernels.swap.layers import Swapped
from inception_kernels.swap.pools import PoolForward, pools_of
from inception_kernels.swap.runtime import FusedLayer

pytestmark = needs_kernels


def block(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, kernel, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*block(3, 16, 3))
        self.largest = nn.MaxPool2d(3, 2, 1)
        self.branch = nn.Sequential(nn.AvgPool2d(3, 1, 1), *block(16, 24, 1), nn.MaxPool2d(2))
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.branch(self.largest(self.stem(x))), 1).flatten(1))


POOLS = ["largest", "branch.0", "branch.4"]


def images(N: int = 2, size: int = 21) -> Tensor:
    x = torch.randn(N, 3, size, size, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def swapped_net(net: Net) -> Net:
    ik.swap(net)
    return net


def ran(model: nn.Module) -> dict[str, str]:
    return {pool.path: pool.ran for pool in ik.explain(model).pools}


def reasons(model: nn.Module) -> dict[str, str]:
    return {pool.path: pool.reason for pool in ik.explain(model).pools}


def pool_kernels() -> dict[str, int]:
    """Calls by "operator.direction"."""
    kernels: Counter[str] = Counter()
    for name, count in backends.counters().items():
        operator, direction, *_ = name.split(".")
        if operator.endswith("_pool2d"):
            kernels[f"{operator}.{direction}"] += count
    return dict(kernels)


STEP = {"max_pool2d.forward": 2, "max_pool2d.backward": 2, "avg_pool2d.forward": 2}  # an average's gradient is one, too


@pytest.mark.parametrize("autocast", [False, True])
def test_a_training_step_has_the_gradients_of_the_unswapped_model(net, autocast):
    plain, exact = copy.deepcopy(net), copy.deepcopy(net).double()
    ik.swap(net)
    results = []
    for model, x in ((net, images()), (plain, images()), (exact, images().double())):
        backends.reset_counters()
        with (
            profile(activities=[ProfilerActivity.CPU]) as profiled,
            torch.autocast("cpu", torch.bfloat16, autocast and model is not exact),
        ):
            y = model(x)
            F.cross_entropy(y.float() if autocast else y, torch.tensor([1, 3])).backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
        names = {event.key for event in profiled.key_averages()}
        theirs = {"aten::avg_pool2d", "aten::avg_pool2d_backward", "aten::max_pool2d_with_indices"}
        assert pool_kernels() == (STEP if model is net else {})
        assert names & theirs == (set() if model is net else theirs)
    assert ran(net) == dict.fromkeys(POOLS, "operator")
    ours, theirs, expected = results
    for name, gradient in expected.items():
        assert_as_accurate(ours[name], theirs[name], gradient, name)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [False, True])
def test_without_a_gradient_the_operators_keep_nothing_for_it(net, training, mode):
    plain = copy.deepcopy(net).train(training)
    exact = copy.deepcopy(plain).double()
    ik.swap(net)
    net.train(training)
    backends.reset_counters()
    with mode(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        y = net(images())
    assert pool_kernels() == {"max_pool2d.inference": 2, "avg_pool2d.forward": 1}
    assert not {event.key for event in profiled.key_averages()} & {"aten::avg_pool2d", "aten::max_pool2d"}
    assert ran(net) == dict.fromkeys(POOLS, "operator")
    with torch.no_grad():
        assert_as_accurate(y, plain(images()), exact(images().double()), "y")


def test_report_plan_and_explain_list_pools(net):
    plan = ik.plan(net)
    assert plan.pools == POOLS
    assert plan.to_dict()["pools"] == POOLS
    report = ik.swap(net)
    assert report.pools == report.to_dict()["pools"] == POOLS
    assert "largest, branch.0, branch.4" in str(report)
    assert len(report.swapped) == 2
    assert ran(net) == dict.fromkeys(POOLS, "not called yet")
    assert {pool.path: pool.operator for pool in ik.explain(net).pools} == {
        "largest": "max_pool2d", "branch.0": "avg_pool2d", "branch.4": "max_pool2d"
    }  # fmt: skip


def test_a_plan_may_leave_pools_alone(net):
    plan = ik.plan(net)
    plan.pools.remove("branch.0")
    assert ik.swap(net, plan=plan).pools == ["largest", "branch.4"]
    assert type(net.branch[0]) is nn.AvgPool2d
    plan.pools.append("stem")
    with pytest.raises(ValueError, match="stem: not found in this model"):
        ik.swap(net, plan=plan)


def test_a_model_without_fused_layers_keeps_its_pools():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    with pytest.warns(UserWarning, match="nothing was swapped"):
        assert not ik.swap(model).pools
    assert type(model[1]) is nn.MaxPool2d
    model = nn.Sequential(*block(3, 4, 3), nn.MaxPool2d(2))
    plan = ik.plan(model)
    plan.swapped.clear()
    with pytest.warns(UserWarning, match="nothing was swapped"):
        assert not ik.swap(model, plan=plan).pools


def test_subclasses_and_replaced_forwards_are_left_alone(net):
    class Own(nn.MaxPool2d):
        pass

    net.largest = Own(3, 2, 1)
    net.branch[4].forward = lambda x: F.max_pool2d(x, 2)
    assert ik.swap(net).pools == ["branch.0"]


def test_unswap_restores_and_swapping_twice_changes_nothing(net):
    before = {path: type(module) for path, module in net.named_modules()}
    keys = list(net.state_dict())
    first = ik.swap(net)
    swapped = {path: type(module) for path, module in net.named_modules()}
    assert isinstance(net.largest, nn.MaxPool2d)
    assert isinstance(net.largest, PoolForward)
    second = ik.swap(net)
    assert (second.pools, len(second.swapped)) == (first.pools, len(first.swapped))
    assert {path: type(module) for path, module in net.named_modules()} == swapped
    assert list(net.state_dict()) == keys
    assert ik.unswap(net) == len(first.swapped) == 2
    assert {path: type(module) for path, module in net.named_modules()} == before
    assert not any(name.startswith("_ik") for module in net.modules() for name in vars(module))


def test_the_swapped_block_and_a_failed_verification_restore_pools(net, monkeypatch):
    with ik.swapped(net):
        assert isinstance(net.largest, PoolForward)
    assert type(net.largest) is nn.MaxPool2d

    def fail(*_):
        raise ValueError("no")

    plan = ik.plan(net)
    monkeypatch.setattr(FusedLayer, "__call__", fail)
    with pytest.raises(ValueError, match="no"):
        ik.swap(net, plan=plan, verify=images())
    assert not any(isinstance(module, Swapped) for module in net.modules())


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_keep_the_operators(swapped_net, how):
    swapped_net(images()).sum().backward()
    twin = COPIES[how](swapped_net)
    assert ran(twin) == dict.fromkeys(POOLS, "not called yet")
    backends.reset_counters()
    twin(images()).sum().backward()
    assert ran(twin) == dict.fromkeys(POOLS, "operator")
    assert pool_kernels() == STEP
    alone = COPIES[how](swapped_net.largest)
    assert ik.unswap(alone) == 0
    assert type(alone) is nn.MaxPool2d


def test_hooks_of_a_pool_fire(swapped_net):
    seen: list[str] = []
    swapped_net.largest.register_forward_pre_hook(lambda *_: seen.append("pre"))
    swapped_net.largest.register_forward_hook(lambda *_: seen.append("forward"))
    swapped_net.largest.register_full_backward_hook(lambda *_: seen.append("backward"))
    swapped_net(images()).sum().backward()
    assert seen == ["pre", "forward", "backward"]
    assert ran(swapped_net) == dict.fromkeys(POOLS, "operator")


SETTINGS = {
    "ceil_mode": ("largest", dict(ceil_mode=True), "ceil_mode"),
    "dilation": ("largest", dict(dilation=2), "dilation"),
    "stride_none": ("largest", dict(stride=None), "stride None"),
    "large_window": ("largest", dict(kernel_size=17, padding=8), "kernel_size 17"),
    "average_ceil": ("branch.0", dict(ceil_mode=True), "ceil_mode"),
    "average_divisor": ("branch.0", dict(divisor_override=7), "divisor_override"),
    "average_stride": ("branch.0", dict(stride=2), "stride 2"),
    "average_even": ("branch.0", dict(kernel_size=2), "kernel_size 2"),
    "average_padding": ("branch.0", dict(padding=0), "padding 0"),
}


def stepped(model: nn.Module) -> tuple[Tensor, ...]:
    y = model(images().to(next(model.parameters()).dtype))
    return y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))


def assert_steps_as_accurate(net: nn.Module, plain: nn.Module) -> None:
    """Output and gradients of `net` have at most twice the error of the unswapped model's."""
    exact = copy.deepcopy(plain).double()
    names = ["output", *(name for name, _ in plain.named_parameters())]
    results = zip(names, stepped(net), stepped(plain), stepped(exact), strict=True)
    for name, result, baseline, truth in results:
        assert_as_accurate(result, baseline, truth, name)


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_are_read_at_each_call(net, case):
    path, changed, reason = SETTINGS[case]
    plain = copy.deepcopy(net)
    ik.swap(net)
    net(images())
    assert ran(net)[path] == "operator"
    for model in (net, plain):
        for name, value in changed.items():
            setattr(model.get_submodule(path), name, value)
    assert_steps_as_accurate(net, plain)
    assert ran(net) == {**dict.fromkeys(POOLS, "operator"), path: "original"}
    assert reason in reasons(net)[path]


@pytest.mark.parametrize("changed", [dict(kernel_size=(3, 5), padding=[1, 2]), dict(count_include_pad=False)], ids=str)
def test_other_settings_still_run_the_operator(net, changed):
    plain = copy.deepcopy(net)
    ik.swap(net)
    for model in (net, plain):
        for name, value in changed.items():
            setattr(model.branch[0], name, value)
    assert_steps_as_accurate(net, plain)
    assert ran(net) == dict.fromkeys(POOLS, "operator")


@pytest.mark.parametrize(
    ("path", "changed", "error", "message"),
    [
        ("largest", dict(padding=2), RuntimeError, "pad should be at most half"),
        ("largest", dict(padding="1"), TypeError, "padding"),
        ("largest", dict(padding=-1), RuntimeError, "pad"),
        ("largest", dict(stride=2**31), RuntimeError, "overflow|out of range"),
        ("branch.0", dict(kernel_size=2**31 + 1, padding=2**30), RuntimeError, "overflow|out of range"),
    ],
    ids=str,
)
@pytest.mark.parametrize("gradient", [False, True])
def test_settings_that_pytorch_refuses_are_refused_by_pytorch(swapped_net, path, changed, error, message, gradient):
    for name, value in changed.items():
        setattr(swapped_net.get_submodule(path), name, value)
    backends.reset_counters()
    with torch.set_grad_enabled(gradient), pytest.raises(error, match=message):
        swapped_net.get_submodule(path)(images().requires_grad_(gradient))
    assert not pool_kernels()


def test_return_indices(swapped_net):
    pool = swapped_net.largest
    x = images().requires_grad_()
    pool.return_indices = True
    y, indices = pool(x)
    assert torch.equal(y.flatten(2), x.flatten(2).gather(2, indices.flatten(2)))


def transformed(pool: nn.Module) -> None:
    torch.func.grad(lambda x: pool(x).sum())(images())


def forward_mode(pool: nn.Module) -> None:
    torch.func.jvp(pool, (images(),), (images(),))


def traced(pool: nn.Module) -> None:
    torch.jit.trace(pool, images().requires_grad_(), check_trace=False)


def on_reference(pool: nn.Module) -> None:
    with ik.use_backend("reference"):
        pool(images().requires_grad_())


OTHER_CALLS = {
    "contiguous": (lambda pool: pool(images().contiguous().requires_grad_()), "not channels-last"),
    "three_dimensions": (lambda pool: pool(images()[0].requires_grad_()), r"\[3, 21, 21\]"),
    "meta": (lambda pool: pool(images().to("meta").requires_grad_()), "meta"),
    "empty": (lambda pool: pool(images(0).requires_grad_()), r"\[0, 3, 21, 21\]"),
    "function_transform": (transformed, "input is a|function transform"),
    "forward_mode": (forward_mode, "function transform"),
    "trace": (traced, "torch.jit.trace"),
    "reference": (on_reference, "use_backend"),
}


@pytest.mark.parametrize("case", OTHER_CALLS)
@pytest.mark.parametrize("path", ["largest", "branch.0"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_other_calls_run_pytorchs(swapped_net, path, case):
    call, reason = OTHER_CALLS[case]
    backends.reset_counters()
    call(swapped_net.get_submodule(path))
    assert not pool_kernels()
    assert ran(swapped_net)[path] == "original"
    assert re.search(reason, reasons(swapped_net)[path])


def test_symbolic_traces_see_the_pool(swapped_net):
    graph = torch.fx.symbolic_trace(nn.Sequential(swapped_net.largest)).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [F.max_pool2d]


def test_compiled_models_train(net):
    plain = copy.deepcopy(net)
    ik.swap(net)
    assert_steps_as_accurate(torch.compile(net, fullgraph=True), plain)


@pytest.mark.parametrize(("make", "count"), [(inception_v3, 13), (xception, 4)], ids=["inception_v3", "xception"])
def test_every_pool_of_the_networks_runs_an_operator(make, count):
    model = make(num_classes=3, width=1 / 16)
    model.AuxLogits = None  # Inception's needs images of 299 pixels, and has no such pool
    ik.swap(model)
    assert len(pools_of(model)) == count
    model(images(2, 91)).sum().backward()
    assert set(ran(model).values()) == {"operator"}
