"""The variants of Xception that the paper compares: same keys, and fused like the network itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import needs_kernels, randomize_batch_norm

import inception_kernels as ik
from inception_kernels import models
from inception_kernels.models.xception import SeparableConv2d


def small(**options) -> models.Xception:
    torch.manual_seed(0)
    return models.xception(num_classes=10, width=0.125, **options)


@pytest.mark.parametrize("activation", ["none", "relu", "elu"])
def test_intermediate_activation(activation):
    torch.manual_seed(0)
    layer = SeparableConv2d(6, 8, activation)
    x = torch.randn(2, 6, 5, 5)
    between = {"none": lambda t: t, "relu": F.relu, "elu": F.elu}[activation]
    torch.testing.assert_close(layer(x), layer.pointwise(between(layer.conv1(x))))
    model = small(mid_activation=activation)
    layers = [m for m in model.modules() if isinstance(m, SeparableConv2d)]
    assert [m.mid_activation for m in layers] == [activation] * 34
    assert list(model.state_dict()) == list(small().state_dict())


def test_no_other_intermediate_activation():
    with pytest.raises(ValueError, match="expected none, relu or elu, got 'silu'"):
        small(mid_activation="silu")


def test_fully_connected_layers():
    model = small(fully_connected=(32, 24)).eval()
    added = set(model.state_dict()) - set(small().state_dict())
    assert added == {f"hidden.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert (model.hidden[0].in_features, model.hidden[0].out_features) == (256, 32)
    assert (model.fc.in_features, model.fc.out_features) == (24, 10)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@needs_kernels
@pytest.mark.parametrize(
    "options",
    [
        dict(mid_activation="elu"),
        dict(mid_activation="relu", residuals=False),
        dict(fully_connected=(32,)),
        dict(dropout=0.5, residuals=False),
    ],
    ids=str,
)
def test_every_variant_is_swapped_and_trains(options):
    """Every layer of each; logits and gradients, as one vector, are as accurate as PyTorch's.

    Not one by one: behind dozens of ReLUs one rounding more or less decides about a single gradient.
    """
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([1, 3, 5, 9])

    def run(x: torch.Tensor, fused: bool) -> dict[str, torch.Tensor]:
        model = randomize_batch_norm(small(**options), example_input=x.float()).to(x.dtype).eval()
        if fused:
            report = ik.swap(model, example_input=x)
            assert len(report.swapped) == (40 if options.get("residuals", True) else 36)
            assert not report.declined
        logits = model(x)
        ik.label_smoothing_cross_entropy(logits, target).backward()
        return {"logits": logits.detach(), **{name: p.grad for name, p in model.named_parameters()}}

    exact = run(x.double(), False)

    def error(found: dict[str, torch.Tensor]) -> float:
        return (
            sum(((found[n].double() - true).norm() / true.norm()).square().item() for n, true in exact.items()) ** 0.5
        )

    channels_last = x.to(memory_format=torch.channels_last)
    assert error(run(channels_last, True)) <= 2 * max(error(run(each, False)) for each in (x, channels_last))
