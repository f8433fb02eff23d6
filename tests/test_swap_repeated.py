"""Training steps whose arguments were checked before: the same results, and checked again when anything changes."""

import copy
import pickle

import pytest
import torch
from helpers import assert_as_accurate, needs_kernels, randomize_batch_norm
from swap_models import BasicConv2d, Residual, Separable
from torch import nn
from torch.utils.checkpoint import checkpoint

import inception_kernels as ik
from inception_kernels import backends
from inception_kernels.swap import explain, runtime
from inception_kernels.swap.layers import Swapped

# Without the CPU kernels every step is checked; all else holds there as well.
REPEATS = backends.can_run_cpu() is None


def checks(steps: int) -> int:
    """Calls with checks that a layer makes in so many equal steps."""
    return 1 if REPEATS else steps


class SeparableBN(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(Separable(8, 12), nn.BatchNorm2d(12), nn.ReLU())


def layer_of(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = randomize_batch_norm(BasicConv2d(8, 12, padding=1) if kind is BasicConv2d else kind()).train()
    ik.swap(model)
    return model


def norm_of(model: nn.Module) -> nn.BatchNorm2d:
    return next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def conv_of(model: nn.Module) -> nn.Conv2d:
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def image(seed: int = 1, size: int = 9, batch: int = 2, channels: int = 8) -> torch.Tensor:
    x = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def checked(monkeypatch):
    """The operators that were called with all their checks, by name."""
    calls: list[str] = []

    def counted(name):
        operator = getattr(runtime, name)

        def call(*args, **kwargs):
            calls.append(name)
            return operator(*args, **kwargs)

        monkeypatch.setattr(runtime, name, call)

    counted("conv2d_bn_act")
    counted("separable_conv2d")
    return calls


def without_repeating(model: nn.Module) -> nn.Module:
    """A copy that checks every step."""
    model = copy.deepcopy(model)

    def forget(module: nn.Module, args: object) -> None:
        for each in module.modules():
            if isinstance(each, Swapped):
                each._drop_caches()

    model.register_forward_pre_hook(forget)
    return model


def step(model: nn.Module, x: torch.Tensor, autocast: torch.dtype | None = None) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        y = model(x)
    y.float().square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    return y.detach()


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [BasicConv2d, SeparableBN, Residual])
def test_repeated_steps_have_the_bits_of_checked_ones(kind, autocast, checked):
    model = layer_of(kind)
    x = image(channels=3, size=21) if kind is Residual else image()
    plain = without_repeating(model)
    checked.clear()  # swap called the operators too
    for _ in range(4):
        assert torch.equal(step(plain, x, autocast), step(model, x, autocast))
    for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert len(checked) == (4 + checks(4)) * len(explain(model).layers) > 0


def test_what_ran_can_be_asked(checked):
    model, x = layer_of(BasicConv2d), image()
    checked.clear()
    step(model, x)
    first, choice = explain(model).layers, backends.last_choice()
    assert choice is not None and choice.backend == ("cpu" if REPEATS else "reference")
    backends.reset_counters()
    step(model, x)
    assert len(checked) == checks(2)
    assert explain(model).layers == first
    assert backends.last_choice() == choice
    forward = {name: count for name, count in backends.counters().items() if name.startswith("conv2d_bn_act.forward")}
    assert sum(forward.values()) == 1


def set_momentum(model, x):
    norm_of(model).momentum = 0.3
    return x


def set_eps(model, x):
    norm_of(model).eps = 0.5
    return x


def set_stride(model, x):
    conv_of(model).stride = (2, 2)
    return x


def set_padding(model, x):
    conv_of(model).padding = "same"
    return x


def new_weight(model, x):
    conv_of(model).weight = nn.Parameter(torch.randn_like(conv_of(model).weight))
    return x


def other_storage(model, x):
    conv_of(model).weight.data = torch.randn_like(conv_of(model).weight)
    return x


def other_shape_of_the_same_storage(model, x):
    weight = conv_of(model).weight
    weight.data = weight.data[:, :, :, :1]
    conv_of(model).padding = (1, 0)
    return x


def new_statistics(model, x):
    norm_of(model).running_mean = torch.ones_like(norm_of(model).running_mean)
    return x


def strided_statistics(model, x):
    norm_of(model).running_mean = torch.zeros(24)[::2]
    return x


def cumulative(model, x):
    norm_of(model).momentum = None
    return x


def untracked(model, x):
    norm_of(model).track_running_stats = False
    return x


def larger(model, x):
    return image(size=11)


def double(model, x):
    model.double()
    return x.double()


CHANGES = [
    set_momentum, set_eps, set_stride, set_padding, new_weight, other_storage, other_shape_of_the_same_storage,
    new_statistics, strided_statistics, cumulative, untracked, larger, double,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_checked_and_takes_effect(change, checked):
    model, x = layer_of(BasicConv2d), image()
    step(model, x)
    plain = without_repeating(model)
    torch.manual_seed(5)
    x = change(model, x)
    torch.manual_seed(5)
    change(plain, x)
    before = len(checked)
    ours = step(model, x)
    assert len(checked) == before + 1
    assert torch.equal(ours, step(plain, x))
    for mine, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_evaluation_between_steps(checked):
    model, x = layer_of(BasicConv2d), image()
    step(model, x)
    model.eval()
    with torch.no_grad():
        model(x)
    model.train()
    plain = without_repeating(model)
    assert torch.equal(step(model, x), step(plain, x))


def test_autocast_and_a_forced_backend_are_noticed(checked):
    model, x = layer_of(BasicConv2d), image()
    checked.clear()
    step(model, x)
    assert step(model, x, torch.bfloat16).dtype == torch.bfloat16
    assert len(checked) == 2
    with ik.use_backend("reference"):
        step(model, x, torch.bfloat16)
    assert len(checked) == 3
    assert [layer.last.backend for module in model.modules() if isinstance(module, Swapped) for layer in
            module.swapped_layers] == ["reference"]  # fmt: skip


@needs_kernels
def test_a_step_checked_under_a_forced_backend_is_repeated_under_it_alone(checked):
    model, x = layer_of(BasicConv2d), image()
    checked.clear()
    with ik.use_backend("cpu"):
        step(model, x)
        step(model, x)
        assert len(checked) == 1
    step(model, x)
    assert len(checked) == 2
    step(model, x)
    assert len(checked) == 2


def test_what_the_operator_refuses_is_still_refused():
    model, x = layer_of(BasicConv2d), image(batch=1, size=4)
    norm = norm_of(model)
    step(model, x)
    shared = torch.zeros(4096)
    norm.running_mean = shared[:12]
    step(model, x)
    tracked, mean, count = norm.num_batches_tracked, norm.running_mean.clone(), norm.num_batches_tracked.clone()
    overlapping = shared[: x.numel()].view(1, 4, 4, 8).permute(0, 3, 1, 2)
    assert overlapping.shape == x.shape
    with pytest.raises(ValueError, match="running_mean and x: expected separate memory"):
        model(overlapping)
    norm.running_mean.requires_grad_()
    with pytest.raises(ValueError, match="running_mean: expected a buffer"):
        model(x)
    assert torch.equal(norm.running_mean, mean) and torch.equal(tracked, count)


@pytest.mark.parametrize("copied_by", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_check_their_own_first_step(copied_by, checked):
    model, x = layer_of(SeparableBN), image()
    checked.clear()
    step(model, x)
    copied = copied_by(model)
    step(model, x)
    assert len(checked) == checks(2)
    step(copied, x)
    assert len(checked) == checks(2) + 1


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", [BasicConv2d, SeparableBN])
def test_activation_checkpoints(kind, reentrant):
    """Gradients and buffers are the unswapped model's, whose batch norm sees a batch again that is computed again."""
    model = layer_of(kind)
    plain = copy.deepcopy(model)
    ik.unswap(plain)
    exact = copy.deepcopy(plain).double()
    for step in range(3):
        gradients = []
        for each in (model, plain, exact):
            x = image(seed=step).to(next(each.parameters()).dtype).requires_grad_()
            each.zero_grad()
            checkpoint(each, x, use_reentrant=reentrant).square().sum().backward()
            gradients.append([x.grad, *(parameter.grad for parameter in each.parameters())])
        for ours, theirs, truth in zip(*gradients, strict=True):
            assert_as_accurate(ours, theirs, truth)
    for (name, truth), ours, theirs in zip(exact.named_buffers(), model.buffers(), plain.buffers(), strict=True):
        if truth.is_floating_point():
            assert_as_accurate(ours, theirs, truth, name)
        else:
            assert torch.equal(ours, truth), name


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_a_setting_that_is_a_list_may_change_in_place(name, mode):
    """As nn.Conv2d allows: what a layer was prepared or checked for must not be the list itself."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    setattr(block[0], name, list(getattr(block[0], name)))
    model = nn.Sequential(block).train(mode == "train")
    plain, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    x = torch.randn(2, 8, 9, 9)
    ik.swap(model)
    outputs = []
    with torch.set_grad_enabled(mode == "train"):
        for each in (model, plain, exact):
            own = x.to(each[0][0].weight.dtype)
            for _ in range(3):
                each(own)
            getattr(each[0][0], name)[:] = [2, 2]
            outputs.append(each(own))
    assert_as_accurate(*outputs)
    assert explain(model).layers[0].ran in ("prepared", "operator")
