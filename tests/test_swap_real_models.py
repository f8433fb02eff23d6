"""The four networks that the operators are for: ours, torchvision's and timm's, whole."""

import copy
import math

import pytest
import torch
from helpers import assert_as_accurate, randomize_batch_norm
from swap_models import gradient_distances
from torch import nn

from inception_kernels import backends, models
from inception_kernels.swap import explain, swap, unswap

INCEPTION = {"conv2d_bn_act": 94}
XCEPTION = {"conv2d_bn_act": 6, "separable_conv2d": 34}
CASES = [
    pytest.param("inception_v3", 75, INCEPTION, id="inception_v3"),
    pytest.param("xception", 43, XCEPTION, id="xception"),
    pytest.param(
        "torchvision:inception_v3", 75, INCEPTION, id="torchvision", marks=pytest.mark.third_party("torchvision")
    ),
    pytest.param("timm:legacy_xception", 43, XCEPTION, id="timm", marks=pytest.mark.third_party("timm", "torchvision")),
]


def load(name: str) -> nn.Module:
    torch.manual_seed(0)
    return models.load(name, num_classes=50, **({"aux_logits": False} if "inception" in name else {}))


def forward_calls() -> dict[str, int]:
    """Calls per operator since the last reset, whichever backend ran them."""
    counts: dict[str, int] = {}
    for name, number in backends.counters().items():
        operator, _, rest = name.partition(".")
        if operator in ("conv2d_bn_act", "separable_conv2d") and rest.startswith("forward") and number:
            counts[operator] = counts.get(operator, 0) + number
    return counts


def evaluate(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize(("name", "pixels", "expected"), CASES)
def test_evaluation(name, pixels, expected):
    model = load(name).eval()
    x = torch.randn(2, 3, pixels, pixels)
    randomize_batch_norm(model, example_input=x)
    keys = list(model.state_dict())
    before = evaluate(model, x)
    for dtype in (torch.bfloat16, torch.float32):
        candidate = copy.deepcopy(model).to(dtype)
        wide = evaluate(copy.deepcopy(candidate).double(), x.to(dtype).double())
        # In the layout that the swapped model computes in: PyTorch's own rounding depends on it.
        nhwc = copy.deepcopy(candidate).to(memory_format=torch.channels_last)
        plain = evaluate(nhwc, x.to(dtype).contiguous(memory_format=torch.channels_last))
        report = swap(candidate, strict=True)
        backends.reset_counters()
        actual = evaluate(candidate, x.to(dtype))
        assert forward_calls() == expected
        assert_as_accurate(actual, plain, wide)
        assert list(candidate.state_dict()) == keys
    assert explain(candidate).conversions == 1
    assert unswap(candidate) == len(report.swapped)
    assert torch.equal(evaluate(candidate, x), before)


@pytest.mark.parametrize(("name", "pixels", "expected"), CASES)
def test_training_is_the_same_computation(name, pixels, expected):
    """In float64: every gradient, statistic and batch count of two steps of SGD."""
    model = load(name).double().train()
    plain = copy.deepcopy(model)
    swap(model, strict=True)
    # Maps of one pixel and two images would leave batch norm two values per channel, and amplify any rounding.
    pixels = 107 if "inception" in name else pixels
    x = torch.randn(4, 3, pixels, pixels, dtype=torch.float64)
    backends.reset_counters()
    for candidate in (model, plain):
        torch.manual_seed(1)  # dropout
        optimizer = torch.optim.SGD(candidate.parameters(), lr=1e-4, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            candidate(x).logsumexp(1).sum().backward()
            optimizer.step()
    assert forward_calls() == {operator: 2 * calls for operator, calls in expected.items()}
    for (parameter_name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        scale = other.grad.abs().max().item()
        difference = (parameter.grad - other.grad).abs().max().item()
        assert difference <= 1e-7 * scale, f"{parameter_name}: {difference:.2e} of {scale:.2e}"
    for (buffer_name, buffer), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-9, atol=1e-11, msg=buffer_name)


@pytest.mark.parametrize(("name", "pixels", "expected"), CASES)
def test_a_training_step_is_as_accurate(name, pixels, expected):
    """One step in float32, over several batches: a deep network in training amplifies rounding whoever made it, and in
    one batch the luckier of two equal implementations may be many times better."""
    model = load(name).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plain = copy.deepcopy(model).to(memory_format=torch.channels_last)
    exact = copy.deepcopy(model).double()
    swap(model, strict=True)
    squares = [0.0, 0.0]
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.randn(4, 3, max(pixels, 75), max(pixels, 75)).contiguous(memory_format=torch.channels_last)
        for candidate in (model, plain, exact):
            candidate.zero_grad()
            logits = candidate(x.to(next(candidate.parameters()).dtype))
            nn.functional.cross_entropy(logits, torch.tensor([0, 13, 25, 46])).backward()
        squares = [total + d * d for total, d in zip(squares, gradient_distances(model, plain, exact), strict=True)]
    ours, theirs = (math.sqrt(total / 4) for total in squares)
    assert ours <= 2 * theirs, f"ours {ours:.3e}, PyTorch's {theirs:.3e}"


@pytest.mark.parametrize("name", ["inception_v3", "torchvision:inception_v3"])
@pytest.mark.third_party("torchvision")
def test_auxiliary_head(name):
    head = models.load(name, num_classes=7).AuxLogits.double().train()
    plain = copy.deepcopy(head)
    assert len(swap(head, strict=True).swapped) == 2
    x = torch.randn(2, 768, 17, 17, dtype=torch.float64)
    backends.reset_counters()
    for candidate in (head, plain):
        candidate(x).square().sum().backward()
    assert forward_calls() == {"conv2d_bn_act": 2}
    for (parameter_name, parameter), other in zip(head.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other[1].grad, rtol=1e-9, atol=1e-11, msg=parameter_name)
