"""The operator that normalises a raw convolution in evaluation, and the calls that keep one for their gradient."""

import copy

import pytest
import torch
from helpers import assert_as_accurate, needs_kernels
from operator_cases import conv_case, evaluate_on, in_layout, separable_case
from oracle import ACTIVATIONS, activate
from torch import nn

import inception_kernels as ik
from inception_kernels import backends

pytestmark = needs_kernels
OP = getattr(torch.ops.inception_kernels, "batch_norm", None)


def tensors(dtype=torch.float32, sizes=(2, 7, 5, 3)):
    g = torch.Generator().manual_seed(3)
    z, residual = (torch.randn(sizes, generator=g).to(dtype) for _ in range(2))
    vector = torch.float64 if dtype == torch.float64 else torch.float32
    gamma, beta, mean, var = (torch.rand(sizes[1], generator=g).to(vector) + 0.5 for _ in range(4))
    return z, gamma, beta, mean, var, residual


def plainly(z, gamma, beta, mean, var, residual, activation, eps):
    y = nn.functional.batch_norm(z, mean, var, gamma, beta, eps=eps)
    return activate(y if residual is None else y + residual, activation)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_slice", "spatial_slice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_against_float64(activation, dtype, layout, poisoned_memory):
    z, *others, residual = tensors(dtype)
    for added in (None, residual):
        y = OP(in_layout(z, layout), *others, added, activation, 1e-3)
        wide = [None if t is None else t.double() for t in (z, *others, added)]
        assert_as_accurate(y, plainly(z, *others, added, activation, 1e-3), plainly(*wide, activation, 1e-3))
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=torch.channels_last) == (layout != "contiguous")


def test_without_weight_and_of_an_empty_batch():
    z, _, _, mean, var, _ = tensors()
    y = OP(z, None, None, mean, var, None, "relu", 1e-5)
    wide = z.double(), None, None, mean.double(), var.double(), None
    assert_as_accurate(y, plainly(z, None, None, mean, var, None, "relu", 1e-5), plainly(*wide, "relu", 1e-5))
    assert OP(z[:0], None, None, mean, var, None, "relu", 1e-5).shape == (0, 7, 5, 3)


@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (0, torch.zeros(3, 4), "z: expected"),
        (1, torch.zeros(4), r"bn_weight: expected \[7\]"),
        (3, torch.zeros(4), r"running_mean: expected \[7\]"),
        (5, torch.zeros(2, 7, 5, 4), "residual: expected"),
        (5, torch.zeros(2, 7, 5, 3).double(), "residual: expected"),
        (6, "tanh", "activation"),
    ],
)
def test_refuses(index, wrong, message):
    arguments = [*tensors(), "relu", 1e-5]
    arguments[index] = wrong
    with pytest.raises(RuntimeError, match=message):
        OP(*arguments)


def test_opcheck():
    arguments = [*tensors(), "relu", 1e-5]
    torch.library.opcheck(OP.default, tuple(arguments))
    arguments[0] = arguments[0].to(memory_format=torch.channels_last)
    arguments[1] = arguments[5] = None
    torch.library.opcheck(OP.default, tuple(arguments))


# ---- calls in evaluation that keep the raw convolution


def convolutions() -> int:
    return sum(count for name, count in backends.counters().items() if "conv2d" in name and ".forward." in name)


@pytest.mark.parametrize("maker", [conv_case, separable_case])
@pytest.mark.parametrize(
    ("change", "keeps"),
    [
        ({}, True),
        ({"activation": "silu", "residual": True}, True),
        ({"activation": "none"}, True),  # for the gradient of bn_weight
        ({"bn": False, "activation": "relu", "bias": True}, False),
    ],
)
def test_a_gradient_computes_the_convolution_again_only_where_it_was_not_kept(maker, change, keeps):
    case = maker(C=8, K=8, **{"activation": "relu", **change})
    for layout in ("channels_last", "contiguous"):
        laid = case.but(x=in_layout(case.tensors["x"], layout))
        y = evaluate_on("cpu", laid).y
        backends.reset_counters()
        evaluate_on("cpu", laid, torch.ones_like(y))
        assert convolutions() == (1 if keeps else 2), layout


class Block(nn.Sequential):
    """A dense and a separable layer with a batch norm each."""

    def __init__(self):
        torch.manual_seed(0)
        norms = nn.BatchNorm2d(8), nn.BatchNorm2d(12)
        for norm in norms:
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        depthwise, pointwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.Conv2d(8, 12, 1)
        dense = nn.Conv2d(5, 8, 3, padding=1), norms[0], nn.ReLU()
        super().__init__(*dense, depthwise, pointwise, norms[1], nn.ReLU())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("affine", [True, False])
def test_training_with_frozen_batch_norm(affine, autocast):
    """Whose weight and bias are trained, or not."""
    model = Block().train()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(affine)
    plain, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    assert len(ik.swap(model).swapped) == 2
    x = torch.randn(2, 5, 9, 7).to(memory_format=torch.channels_last)
    outputs, inputs = [], []
    backends.reset_counters()
    for each in (model, plain, exact):
        own = x.detach().to(each[0].weight.dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and each is not exact):
            y = each(own)
        y.to(own.dtype).square().mean().backward()
        outputs.append(y)
        inputs.append(own.grad)
        if each is model:
            assert convolutions() == 2
    assert_as_accurate(*outputs)
    assert_as_accurate(*inputs)
    for (name, ours), theirs, truth in zip(
        model.named_parameters(), plain.parameters(), exact.parameters(), strict=True
    ):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            assert ours.grad.dtype == torch.float32
            assert_as_accurate(ours.grad, theirs.grad, truth.grad, name)


@pytest.mark.parametrize("maker", [conv_case, separable_case])
def test_what_is_kept_is_no_leaf_of_the_graph(maker):
    """The statistics that were given get no gradient, and changing them before backward is noticed."""
    case = maker(C=8, K=8, activation="relu")
    x = in_layout(case.tensors["x"], "channels_last").requires_grad_()
    given = {**case.tensors, "x": x}
    operator = ik.conv2d_bn_act if maker is conv_case else ik.separable_conv2d
    y = operator(**given, **case.options)
    given["running_mean"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
