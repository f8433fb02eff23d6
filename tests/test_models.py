"""The reference models against the papers' sizes and against torchvision and timm with the same weights."""

import pytest
import torch
from helpers import randomize_batch_norm
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from inception_kernels import models
from inception_kernels.models import InceptionOutputs


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def gmac(model: nn.Module, size: int = 299) -> float:
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2e9


def on_meta(constructor, **options) -> nn.Module:
    with torch.device("meta"):
        return constructor(**options)


@pytest.mark.parametrize(
    ("constructor", "options", "expected"),
    [
        (models.inception_v3, {}, 27_161_264),
        (models.inception_v3, {"aux_logits": False}, 23_834_568),
        (models.xception, {}, 22_855_952),
    ],
    ids=["inception_v3", "inception_v3-no-aux", "xception"],
)
def test_parameters(constructor, options, expected):
    assert parameters(on_meta(constructor, **options)) == expected


@pytest.mark.parametrize(("name", "expected"), [("inception_v3", 5.71), ("xception", 8.36)])
def test_multiply_adds_at_299(name, expected):
    assert gmac(on_meta(getattr(models, name))) == pytest.approx(expected, abs=0.006)


PAIRS = [
    pytest.param("inception_v3", "torchvision:inception_v3", {}, marks=pytest.mark.third_party("torchvision")),
    pytest.param(
        "inception_v3",
        "torchvision:inception_v3",
        {"aux_logits": False, "transform_input": True, "num_classes": 7},
        marks=pytest.mark.third_party("torchvision"),
    ),
    pytest.param("xception", "timm:legacy_xception", {}, marks=pytest.mark.third_party("timm")),
    pytest.param("xception", "timm:legacy_xception", {"num_classes": 7}, marks=pytest.mark.third_party("timm")),
]


def pair(ours: str, theirs: str, options: dict) -> tuple[nn.Module, nn.Module]:
    """Our model and the third-party one, with the same random weights and batch-norm statistics."""
    torch.manual_seed(0)
    other = randomize_batch_norm(models.load(theirs, **options), seed=1, example_input=torch.randn(2, 3, 299, 299))
    mine = models.load(ours, **options)
    mine.load_state_dict(other.state_dict(), strict=True)
    return mine, other


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
def test_same_keys_in_the_same_order(ours, theirs, options):
    with torch.device("meta"):
        mine, other = models.load(ours, **options), models.load(theirs, **options)
    shapes = [(key, value.shape, value.dtype) for key, value in mine.state_dict().items()]
    assert shapes == [(key, value.shape, value.dtype) for key, value in other.state_dict().items()]


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
def test_same_output_in_evaluation(ours, theirs, options):
    mine, other = pair(ours, theirs, options)
    x = torch.randn(1, 3, 299, 299)
    with torch.no_grad():
        expected = other.eval()(x)
        assert 0.05 < expected.std() < 20, "the test's own activations vanished or exploded"
        torch.testing.assert_close(mine.eval()(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("ours", "theirs", "options"), [PAIRS[0], PAIRS[2]])
def test_same_training_step(ours, theirs, options):
    mine, other = pair(ours, theirs, options)
    x = torch.randn(2, 3, 299, 299)
    outputs = []
    for model in (mine, other):
        torch.manual_seed(3)  # dropout
        output = model.train()(x)
        parts = tuple(output) if isinstance(output, tuple) else (output,)
        sum(part.square().mean() for part in parts).backward()
        outputs.append(parts)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    theirs_by_name = dict(other.named_parameters())
    for name, parameter in mine.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs_by_name[name].grad, rtol=0, atol=0, msg=name)
    their_state = other.state_dict()
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(value, their_state[name], rtol=0, atol=0, msg=name)


def test_auxiliary_head_runs_in_training_only():
    model = on_meta(models.inception_v3, num_classes=7)
    x = torch.empty(2, 3, 299, 299, device="meta")
    output = model.train()(x)
    assert isinstance(output, InceptionOutputs)
    assert output.logits.shape == output.aux_logits.shape == (2, 7)
    assert model.eval()(x).shape == (2, 7)
    assert on_meta(models.inception_v3, aux_logits=False).train()(x).shape == (2, 1000)


@pytest.mark.parametrize("name", ["inception_v3", "xception"])
def test_options(name):
    model = on_meta(getattr(models, name), num_classes=5, in_channels=4, dropout=0.25)
    assert model.dropout.p == 0.25
    assert model.eval()(torch.empty(1, 4, 75, 75, device="meta")).shape == (1, 5)


@pytest.mark.parametrize("name", ["inception_v3", "xception"])
@pytest.mark.parametrize("width", [0.25, 1.5])
def test_width(name, width):
    model, paper = (on_meta(getattr(models, name), num_classes=8, width=factor) for factor in (width, 1.0))
    assert list(model.state_dict()) == list(paper.state_dict())
    wide = {module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)}
    assert all(channels % 8 == 0 for channels in wide)
    assert parameters(model) / parameters(paper) == pytest.approx(width**2, rel=0.1)
    output = model.train()(torch.empty(2, 3, 299, 299, device="meta"))
    assert (output.logits if name == "inception_v3" else output).shape == (2, 8)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan")])
def test_width_is_positive(width):
    with pytest.raises(ValueError, match="expected a positive factor"):
        models.xception(width=width)


def test_transform_input_needs_rgb():
    with pytest.raises(ValueError, match="expected in_channels=3, got 1"):
        models.inception_v3(in_channels=1, transform_input=True)


def test_transform_input_is_the_change_of_statistics():
    torch.manual_seed(0)
    plain = models.inception_v3(aux_logits=False).eval()
    transformed = models.inception_v3(aux_logits=False, transform_input=True).eval()
    transformed.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 75, 75)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(transformed((image - mean) / deviation), plain((image - 0.5) / 0.5))


def test_xception_without_residuals():
    plain, residual = on_meta(models.xception, residuals=False), on_meta(models.xception)
    without_skip = {key for key in residual.state_dict() if ".skip" not in key}
    assert set(plain.state_dict()) == without_skip
    x = torch.randn(1, 3, 75, 75)
    torch.manual_seed(0)
    model = randomize_batch_norm(models.xception(residuals=False), example_input=x).eval()
    block = model.block5
    features = torch.randn(1, 728, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(block(features), block.rep(features))
        assert model(x).isfinite().all()


def test_blocks_leave_their_input_alone():
    block = models.xception().block5.eval()
    features = torch.randn(1, 728, 5, 5)
    before = features.clone()
    with torch.no_grad():
        torch.testing.assert_close(block(features), block.rep(before) + before)
    assert torch.equal(features, before)


@pytest.mark.parametrize("name", ["inception_v3", "xception"])
def test_traces_and_compiles_to_one_graph(name):
    model = on_meta(getattr(models, name)).eval()
    traced = torch.fx.symbolic_trace(model)
    x = torch.empty(1, 3, 299, 299, device="meta")
    assert traced(x).shape == (1, 1000)
    assert not torch._dynamo.explain(model)(x).break_reasons


def test_load_by_name():
    with torch.device("meta"):
        assert isinstance(models.load("xception", num_classes=3), models.Xception)
        assert isinstance(models.load("inception_kernels.models:inception_v3"), models.InceptionV3)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet", ValueError, "package.module:callable, got 'resnet'"),
        ("no_such_package:model", ValueError, "needs the module 'no_such_package'"),
        ("inception_kernels.models:nothing", ValueError, "has no 'nothing'"),
        ("inception_kernels.models:__all__", TypeError, "expected a callable"),
        ("collections:Counter", TypeError, "returned Counter, expected a torch.nn.Module"),
        pytest.param("torchvision:x9", ValueError, "no model 'x9'", marks=pytest.mark.third_party("torchvision")),
        pytest.param("timm:x9", ValueError, "no model 'x9'", marks=pytest.mark.third_party("timm")),
    ],
)
def test_load_says_what_is_wrong(name, error, message):
    with pytest.raises(error, match=message):
        models.load(name)
