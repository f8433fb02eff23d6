"""Structures that a swap must decline, with the reason, or treat with care; each from a model people run."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import randomize_batch_norm
from swap_models import Block, Residual, Separable, conv_bn
from torch import nn

from inception_kernels import models
from inception_kernels.swap import explain, plan, swap, unswap
from inception_kernels.swap.layers import Swapped


def evaluate(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


def assert_equivalent(model: nn.Module, x: torch.Tensor, training: bool = False) -> None:
    """Swapped and original agree in float64, results and buffers, and the input is left as the original leaves it."""
    model = randomize_batch_norm(model).double().train(training)
    original = copy.deepcopy(model)
    swap(model)
    ours, theirs = x.double(), x.double()
    results = [evaluate(model, ours), evaluate(original, theirs)]
    for actual, expected in zip(*(r if isinstance(r, tuple) else (r,) for r in results), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours, theirs)
    for (name, buffer), other in zip(model.named_buffers(), original.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-10, atol=1e-10, msg=name)


def reasons(model: nn.Module) -> dict[str, str]:
    return {record.path: record.reason for record in plan(model).declined}


def dense(**options) -> nn.Conv2d:
    return nn.Conv2d(4, 8, options.pop("window", 3), **options)


def pruned(conv: nn.Conv2d) -> nn.Conv2d:
    from torch.nn.utils import prune

    return prune.l1_unstructured(conv, "weight", 0.5)


def with_hook(conv: nn.Conv2d, kind: str) -> nn.Conv2d:
    getattr(conv, f"register_{kind}")(lambda *args: None)
    return conv


class Same(nn.Conv2d):
    """Pads by the size of its input, as TensorFlow does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def bound_forward(conv: nn.Conv2d) -> nn.Conv2d:
    conv.forward = lambda x: nn.Conv2d.forward(conv, x) * 2
    return conv


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (lambda: with_hook(dense(), "forward_hook"), "forward hook"),
        (lambda: with_hook(dense(), "forward_pre_hook"), "forward pre-hook"),
        (lambda: with_hook(dense(), "full_backward_hook"), "backward hook"),
        (lambda: with_hook(dense(), "full_backward_pre_hook"), "backward pre-hook"),
        (lambda: nn.utils.parametrizations.weight_norm(dense()), "parametrized"),
        (lambda: nn.utils.spectral_norm(dense()), "forward pre-hook"),
        (lambda: pruned(dense()), "forward pre-hook"),
        (lambda: Same(4, 8, 3), "forward of its own"),
        (lambda: bound_forward(dense()), "replaced on the instance"),
        (lambda: dense(padding=1, padding_mode="circular"), "padding_mode='circular'"),
        (lambda: dense(window=(2, 3), padding="same"), "pads the two sides differently"),
        (lambda: dense(groups=2), "grouped convolution"),
        (lambda: nn.Conv2d(4, 8, 3, groups=4), "grouped convolution"),
        (lambda: nn.LazyConv2d(8, 3), "lazy module"),
        (lambda: dense(dtype=torch.complex64), "complex64"),
        (lambda: dense(device="meta"), "meta device"),
        (lambda: torch.ao.nn.qat.Conv2d(4, 8, 3, qconfig=torch.ao.quantization.default_qconfig), "quantization"),
    ],
)
def test_declined_convolutions(conv, reason):
    model = conv_bn(conv(), nn.BatchNorm2d(8))
    assert reason in reasons(model)["conv"]
    with pytest.warns(UserWarning, match="nothing was swapped"):
        swap(model)
    assert not any(isinstance(module, Swapped) for module in model.modules())


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (lambda: with_hook(nn.BatchNorm2d(8), "forward_hook"), "bn: BatchNorm2d has a forward hook"),
        (lambda: nn.SyncBatchNorm(8), "nothing to fuse"),
        (lambda: nn.GroupNorm(2, 8), "nothing to fuse"),
        (lambda: nn.LazyBatchNorm2d(), "nothing to fuse"),
    ],
)
def test_declined_norms(norm, reason):
    assert reason in reasons(conv_bn(dense(), norm(), nn.Sigmoid()))["conv"]


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize(
    "model",
    [
        lambda: conv_bn(dense(), nn.BatchNorm2d(8, momentum=None)),
        lambda: conv_bn(dense(), nn.BatchNorm2d(8, affine=False)),
        lambda: conv_bn(dense(), nn.BatchNorm2d(8, track_running_stats=False)),
        lambda: conv_bn(dense(), nn.BatchNorm2d(8, track_running_stats=False, affine=False)),
        lambda: conv_bn(dense(bias=True, stride=2, padding=(0, 1), dilation=(1, 2)), nn.BatchNorm2d(8)),
        lambda: conv_bn(dense(window=(1, 7), padding="same"), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)),
        lambda: conv_bn(dense(padding="valid"), nn.BatchNorm2d(8), nn.SiLU()),
        lambda: conv_bn(dense(), nn.BatchNorm2d(8), nn.ELU(inplace=True)),
        lambda: nn.Sequential(nn.ReLU(), Separable(4, 8), nn.BatchNorm2d(8)),
        lambda: nn.Sequential(Separable(4, 8, stride=2, dilation=2), nn.BatchNorm2d(8), nn.ReLU()),
        lambda: nn.Sequential(dense(), nn.ReLU()),
    ],
)
def test_variants_are_fused_and_equal(model, training):
    model = model()
    assert len(plan(model).swapped) == 1
    assert plan(model).declined == []
    assert_equivalent(model, torch.randn(3, 4, 9, 8), training)


@pytest.mark.parametrize("activation", [nn.Hardswish(), nn.ELU(alpha=0.5), nn.LeakyReLU(), nn.Sigmoid()])
def test_unsupported_activations_stay_outside(activation):
    model = conv_bn(dense(), nn.BatchNorm2d(8), activation)
    (record,) = plan(model).swapped
    assert record.activations["output"] == "none"
    assert_equivalent(model, torch.randn(2, 4, 7, 7))


def test_frozen_batch_norm_in_a_training_model():
    model = randomize_batch_norm(Residual()).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.requires_grad_(False)
    original = copy.deepcopy(model)
    swap(model)
    x = torch.randn(2, 3, 21, 21, dtype=torch.float64)
    for candidate in (model, original):
        candidate(x).square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), original.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), name
        if other.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-11, msg=name)
    for (name, buffer), other in zip(model.named_buffers(), original.buffers(), strict=True):
        assert torch.equal(buffer, other), name


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("shared_relu", [False, True], ids=["own_relu", "shared_relu"])
@pytest.mark.parametrize("first_inplace", [False, True], ids=["leading", "leading_inplace"])
def test_block_whose_input_the_shortcut_reads(first_inplace, shared_relu, training):
    """An in-place first ReLU changes what the shortcut reads after it: it must run as it is."""
    block = Block(4, 6, first_inplace=first_inplace, shared_relu=shared_relu)
    first = plan(block).swapped[1]
    assert first.path == "rep.1"
    assert first.activations["input"] == ("none" if first_inplace else "relu")
    assert_equivalent(block, torch.randn(2, 4, 9, 9), training)


class ReturnsItsInput(nn.Module):
    """DeepfakeBench's Xception returns features that an in-place ReLU has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(inplace=True), Separable(4, 6), nn.BatchNorm2d(6))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x * 2
        return self.body(x), x


def test_inplace_relu_whose_result_is_returned():
    assert_equivalent(ReturnsItsInput(), torch.randn(2, 4, 7, 7))


def test_inplace_relu_behind_a_module_that_passes_its_input_on():
    assert_equivalent(nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), Separable(4, 6)), torch.randn(2, 4, 7, 7))
    assert_equivalent(nn.Sequential(nn.Dropout(0.5), nn.ReLU(inplace=True), Separable(4, 6)), torch.randn(2, 4, 7, 7))


class TwoReaders(nn.Module):
    """The convolution's own result has another reader, so that batch norm cannot be pulled into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = dense(), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.conv(x)
        return self.bn(z) + z


class SharedActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = dense(padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + x)


class ByMode(nn.Module):
    """Batch norm only while training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = dense(), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.bn(x) if self.training else x


class ByData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = dense(), nn.BatchNorm2d(8)
        self.inner = conv_bn(dense(), nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return self.bn(self.conv(x))
        return self.inner(x)


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(self.bn(self.conv(x)) * 2)) + 1


class ScaledNorm(nn.BatchNorm2d):
    """Looks like batch norm, does more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class LyingNorm(nn.BatchNorm2d):
    """Traces as batch norm, but with another epsilon."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.batch_norm(x, *statistics, self.training, self.momentum, 0.5)


@pytest.mark.parametrize(
    ("model", "path", "reason"),
    [
        (TwoReaders, "conv", "nothing to fuse"),
        (ByMode, "conv", "differs between training and evaluation"),
        (ByData, "conv", "cannot be followed symbolically"),
        (CalledTwice, "conv", "called 2 times"),
        (lambda: conv_bn(dense(), ScaledNorm(8), nn.Sigmoid()), "conv", "nothing to fuse"),
        (lambda: conv_bn(dense(), LyingNorm(8), nn.Sigmoid()), "conv", "probe in evaluation"),
        (lambda: conv_bn(dense(), nn.Identity(), nn.Sigmoid()), "conv", "nothing to fuse"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)), "0", "depthwise convolution"),
    ],
)
def test_declined_structures(model, path, reason):
    model = model()
    assert reason in reasons(model)[path]
    x = torch.randn(2, 4, 8, 8)
    if plan(model).swapped:
        assert_equivalent(model, x)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_shared_activation_runs_itself(training):
    model = SharedActivation()
    assert [record.activations["output"] for record in plan(model).swapped] == ["none", "none"]
    assert_equivalent(model, torch.randn(2, 4, 7, 7), training)


def test_shared_convolutions_are_declined():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(conv, nn.BatchNorm2d(4), conv, nn.BatchNorm2d(4))
    assert reasons(model)["0"] == "shared: the same convolution object is 0 and 2"


def test_torchscript_is_declined():
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit.script"):
        scripted = torch.jit.script(conv_bn(dense()))
    assert "TorchScript" in reasons(nn.Sequential(scripted))["0.conv"]


def test_torchscript_cannot_compile_a_swapped_model():
    model = conv_bn(dense())
    swap(model)
    with pytest.raises(Exception, match="Compiled functions can't take variable number of arguments"):
        torch.jit.script(model)
    unswap(model)
    torch.jit.script(model)


def test_batch_norm_between_depthwise_and_pointwise():
    """timm's xception41 and mobilenets: the pointwise part is swapped, the depthwise one is not."""
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)
    )
    result = plan(model)
    assert [record.path for record in result.swapped] == ["3"]
    assert result.declined[0].path == "0"
    assert_equivalent(model, torch.randn(2, 4, 7, 7))


def test_hooked_leading_activation_runs_itself():
    model = nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), Separable(4, 6), nn.BatchNorm2d(6))
    seen = []
    model[1].register_forward_hook(lambda module, args, result: seen.append(result.shape))
    (record,) = plan(model).swapped
    assert record.activations["input"] == "none"
    assert_equivalent(model, torch.randn(2, 4, 9, 9))
    assert len(seen) == 2


# -- the folded copy of the weights


def folded() -> nn.Sequential:
    model = randomize_batch_norm(nn.Sequential(nn.ReLU(), Separable(4, 6), nn.BatchNorm2d(6))).eval()
    swap(model)
    return model


def write_in_place(model):
    with torch.no_grad():
        model[1].pointwise.weight.mul_(2)


def write_through_data(model):
    model[1].conv1.weight.data.mul_(2)


def replace_data(model):
    model[1].pointwise.weight.data = model[1].pointwise.weight.data * 2


def replace_parameter(model):
    model[1].pointwise.weight = nn.Parameter(model[1].pointwise.weight.detach() * 2)


def load_state(model):
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})


def train_a_batch(model):
    model.train()
    evaluate(model, torch.randn(5, 4, 6, 6))
    model.eval()


def change_eps(model):
    model[2].eps = 0.5


def replace_child(model):
    torch.manual_seed(3)
    model[1] = Separable(4, 6)


def take_a_part(model):
    for module in (model[1].pointwise, model[2]):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dim() > 0:
                tensor.data = tensor.data[:4]


def transpose(model):
    model[1].conv1.weight.data = model[1].conv1.weight.data.transpose(2, 3)


def cast(model):
    model.double()


@pytest.mark.parametrize(
    "change",
    [
        write_in_place, write_through_data, replace_data, replace_parameter, load_state, train_a_batch, change_eps,
        replace_child, take_a_part, transpose, cast,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_folded_weights_follow_every_change(change):
    model = folded()
    x = torch.randn(2, 4, 6, 6)
    before = evaluate(model, x)
    assert torch.equal(evaluate(model, x), before)
    change(model)
    x = x.to(model[1].pointwise.weight.dtype)
    plain = copy.deepcopy(model)
    unswap(plain)
    torch.testing.assert_close(evaluate(model, x), evaluate(plain, x))
    after = evaluate(model, x).to(before.dtype)
    assert after.shape != before.shape or not torch.allclose(after, before, rtol=1e-3) or change is cast


class Doubled(nn.Module):
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value * 2


def parametrize_norm(model):
    nn.utils.parametrize.register_parametrization(model.bn1, "weight", Doubled())


def hold_norm_in_attributes(model):
    """As FullyShardedDataParallel does."""
    for store, name in ((model.bn1._parameters, "bias"), (model.bn1._buffers, "running_var")):
        tensor = store.pop(name)
        setattr(model.bn1, name, (tensor.detach() * 3).requires_grad_(tensor.requires_grad))


def hold_weight_in_attribute(model):
    weight = model.conv1._parameters.pop("weight")
    model.conv1.weight = weight.detach().mul(2).requires_grad_()


def give_norm_a_forward(model):
    model.bn1.forward = lambda x: x * 2


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "change", [parametrize_norm, hold_norm_in_attributes, hold_weight_in_attribute, give_norm_a_forward],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_what_is_no_longer_a_plain_layer_runs_itself(change, training):
    x = torch.randn(2, 3, 43, 43).contiguous(memory_format=torch.channels_last)
    models = [randomize_batch_norm(Residual(), example_input=x).train(training)]
    models.append(copy.deepcopy(models[0]))
    swap(models[1])
    for model in models:
        evaluate(model, x)
        change(model)
    for _ in range(3):
        results = [model(x) for model in models]
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    ran = {layer.path: layer.ran for layer in explain(models[1]).layers}
    assert ran["conv1"] == "original"


def test_a_weight_without_memory_of_its_own():
    from torch.testing._internal.two_tensor import TwoTensor

    x = torch.randn(2, 3, 43, 43)
    model = randomize_batch_norm(Residual(), example_input=x).eval()
    swap(model)
    evaluate(model, x)
    weight = model.conv1.weight.detach()
    model.conv1.weight = nn.Parameter(TwoTensor(weight, weight.clone()), requires_grad=False)
    assert type(evaluate(model, x)) is TwoTensor


class Counting(nn.Module):
    """Writes to its own buffers and lists when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_bn(dense())
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.seen: list[torch.Size] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(x.shape)
        return self.body(x)


def test_a_plan_leaves_alone_what_a_forward_writes_to():
    model = Counting().eval()
    assert len(plan(model).swapped) == 1
    assert (model.calls.item(), model.seen) == (0, [])


def test_inference_tensors_are_not_folded():
    with torch.inference_mode():
        model = folded()
        x = torch.randn(2, 4, 6, 6)
        before = model(x)
        model[1].pointwise.weight.mul_(2)
        assert not torch.allclose(model(x), before)
    assert explain(model).layers[0].ran == "operator"


def test_folded_weights_are_not_in_state_or_copies():
    model = folded()
    evaluate(model, torch.randn(2, 4, 6, 6))
    assert set(model.state_dict()) == set(nn.Sequential(nn.ReLU(), Separable(4, 6), nn.BatchNorm2d(6)).state_dict())
    layer = vars(model)["_ik_site"].steps[0].layer
    assert vars(layer)["_prepared"].held is not None
    assert vars(vars(copy.deepcopy(model))["_ik_site"].steps[0].layer)["_prepared"].held is None


def test_frozen_model_with_gradients_enabled_is_folded():
    model = folded().requires_grad_(False)
    model(torch.randn(2, 4, 6, 6))
    assert explain(model).layers[0].ran == "prepared"


# -- third-party models


@pytest.mark.third_party("timm", "torchvision")
def test_feature_hooks_of_timm_keep_firing():
    model = models.load("timm:legacy_xception", features_only=True).eval()
    randomize_batch_norm(model)
    x = torch.randn(1, 3, 43, 43)
    before = [feature.clone() for feature in evaluate(model, x)]
    report = swap(model)
    assert {record.path for record in report.declined} == set()
    after = evaluate(model, x)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert (old - new).abs().max() <= 1e-4 * old.abs().max()


@pytest.mark.third_party("timm", "torchvision")
@pytest.mark.parametrize(
    ("name", "swapped", "declined"),
    [
        ("timm:inception_v4", 149, {}),
        ("timm:xception41", 45, {"depthwise": 39}),
        ("timm:mobilenetv1_100", 14, {"depthwise": 13}),
    ],
)
def test_other_architectures(name, swapped, declined):
    result = plan(models.load(name).eval())
    assert len(result.swapped) == swapped
    for word, count in declined.items():
        assert sum(word in record.reason for record in result.declined) == count
    assert len(result.declined) == sum(declined.values())
