"""The operators end to end over the CUDA bodies, kernels executed on the host: run by tests/test_cuda_operators.py."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import hosted_operators
import pytest
import torch
from helpers import assert_as_accurate
from operator_cases import DTYPES, MAKERS, check, conv_case, evaluate_on, in_layout, pair_case, separable_case

import inception_kernels as ik
from inception_kernels import backends
from inception_kernels.backends import BackendUnavailableError
from inception_kernels.ops.prepared import PreparedConv2dBNAct, PreparedSeparableConv2d
from inception_kernels.swap import runtime

BN = ("bn_weight", "bn_bias", "running_mean", "running_var")
SM = int(os.environ["IK_TEST_SM"])

pytestmark = pytest.mark.usefixtures("poisoned_memory")  # workspace, too

CONVOLUTIONS = {
    "1x7": dict(C=16, K=24, window=(1, 7), padding=(0, 3)),
    "3x3 stride 2": dict(C=8, K=16, window=(3, 3), stride=2, padding=1, residual=True),
    "odd channels, dilated": dict(C=5, K=6, window=(3, 3), dilation=2, padding=2, bias=True, activation="silu"),
    "1x1 of one image": dict(N=1, C=64, K=72, window=(1, 1), activation="none"),
    "no batch norm": dict(C=8, K=8, window=(3, 1), bn=False, bias=True, activation="relu6"),
}
SEPARABLE = {
    "xception": dict(C=16, K=24, padding=1, input_activation="relu"),
    "stride 2, residual": dict(C=24, K=16, stride=2, padding=1, residual=True, activation="relu"),
    "odd channels, mid activation": dict(C=5, K=6, padding=1, mid_activation="elu", depthwise_bias=True, bias=True),
    "no batch norm": dict(C=8, K=8, padding=2, dilation=2, bn=False, activation="silu"),
}


@pytest.fixture(scope="session")
def executed() -> Iterator[set[str]]:
    """The kernels that ran in any test, kept in the file that IK_TEST_RECORD names."""
    names: set[str] = set()
    yield names
    if "IK_TEST_RECORD" in os.environ:
        Path(os.environ["IK_TEST_RECORD"]).write_text("\n".join(sorted(names)))


@pytest.fixture(autouse=True)
def _context(executed):
    hosted_operators.hosted.context(SM)
    yield
    assert hosted_operators.hosted.reports() == ""
    executed |= {name for name, count in backends.counters().items() if count and ".cuda_" in name}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv2d_bn_act(name, dtype, training):
    options = CONVOLUTIONS[name]
    case = conv_case(dtype=DTYPES[dtype], training=training, **options)
    check(case, "cuda", grad_layout="contiguous" if dtype == "f32" else "channels_last")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", SEPARABLE)
def test_separable_conv2d(name, dtype, training):
    case = separable_case(dtype=DTYPES[dtype], training=training, **SEPARABLE[name])
    check(case.but(x=in_layout(case.tensors["x"], "channels_last")), "cuda")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_asymmetric_pair(dtype, training):
    case = pair_case(C=16, M=24, K=16, windows=((1, 7), (7, 1)), padding1=(0, 3), padding2=(3, 0), dtype=DTYPES[dtype])
    check(case.but(training=training), "cuda")


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_asymmetric_pair_in_one_kernel(dtype):
    """A device so small that the pair's few lines occupy it."""
    hosted_operators.hosted.context(SM, multiprocessors=1)
    check(pair_case(C=16, M=16, K=24, H=9, W=9, dtype=DTYPES[dtype], bias=True), "cuda")


@pytest.mark.parametrize("allow_tf32", [False, True])
def test_pair_in_one_kernel_follows_the_precision(allow_tf32):
    hosted_operators.hosted.context(SM, multiprocessors=1, allow_tf32=allow_tf32)
    backends.reset_counters()
    evaluate_on("cuda", pair_case(C=16, M=16, K=24, H=9, W=9))
    assert f"asymmetric_pair.forward.cuda_sm80_{'tf32' if allow_tf32 else 'fp32'}" in backends.counters()


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_separable_conv2d_of_a_large_image(dtype):
    """Enough rows that a worker keeps its weights."""
    hosted_operators.hosted.context(SM, multiprocessors=1)
    case = separable_case(C=16, K=16, H=40, W=36, padding=1, input_activation="relu", dtype=DTYPES[dtype])
    check(case.but(x=in_layout(case.tensors["x"], "channels_last")), "cuda")


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_prepared_layers_have_the_bits_of_the_operators(dtype):
    case = conv_case(C=16, K=24, padding=1, dtype=DTYPES[dtype], bias=True)
    x, weight, *vectors = (case.tensors[name] for name in ("x", "weight", *BN, "bias"))
    x = in_layout(x, "channels_last")
    prepared = PreparedConv2dBNAct(weight, *vectors, padding=1)
    with ik.use_backend("cuda"):
        assert_close(prepared(x), ik.conv2d_bn_act(x, weight, *vectors, padding=1))

    case = separable_case(C=16, K=24, padding=1, dtype=DTYPES[dtype], depthwise_bias=True)
    x, *weights = (case.tensors[name] for name in ("x", "depthwise_weight", "pointwise_weight", *BN))
    x, offset = in_layout(x, "channels_last"), case.tensors["depthwise_bias"]
    prepared = PreparedSeparableConv2d(*weights, depthwise_bias=offset, padding=1, input_activation="relu")
    with ik.use_backend("cuda"):
        direct = ik.separable_conv2d(x, *weights, depthwise_bias=offset, padding=1, input_activation="relu")
    assert_close(prepared(x), direct)


def assert_close(prepared: torch.Tensor, direct: torch.Tensor) -> None:
    """Folded in float64 here and in float32 there: the last place may differ."""
    ulps = 2 * torch.finfo(direct.dtype).eps * direct.abs().max().item()
    torch.testing.assert_close(prepared, direct, rtol=0, atol=ulps)
    assert prepared.stride() == direct.stride()


@pytest.mark.parametrize("operator", MAKERS)
def test_tf32_as_the_context_allows(operator):
    case = MAKERS[operator](C=32, K=32, seed=3)
    for allowed in (False, True):
        hosted_operators.hosted.context(SM, allow_tf32=allowed)
        backends.reset_counters()
        evaluate_on("cuda", case)
        names = {name for name, count in backends.counters().items() if count and ".forward.cuda_" in name}
        assert any(name.endswith("_tf32" if allowed else "_fp32") for name in names), names


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("maker", [conv_case, separable_case])
def test_vectors_of_another_dtype_and_stride(maker, training):
    """float32 batch norm beside bfloat16 activations, its vectors columns of one matrix."""
    case = maker(C=16, K=24, dtype=torch.bfloat16, bn_dtype=torch.float32, bias=True, training=training)
    matrix = torch.stack([case.tensors[name] for name in BN], 1)
    case = case.but(**{name: matrix[:, i] for i, name in enumerate(BN)})
    assert case.tensors["running_var"].stride() == (4,)
    check(case, "cuda")


@pytest.mark.parametrize("layout", ["channel_slice", "spatial_slice", "every_other_image", "expanded_everywhere"])
@pytest.mark.parametrize("maker", [conv_case, separable_case])
def test_views(maker, layout):
    case = maker(C=16, K=24, H=9, W=10, residual=True, padding=1, dtype=torch.bfloat16)
    views = {name: in_layout(case.tensors[name], layout) for name in ("x", "residual")}
    check(case.but(**views), "cuda", grad_layout=layout)


@pytest.mark.parametrize("operator", MAKERS)
def test_the_same_bits_again(operator):
    case = MAKERS[operator](C=16, K=24, dtype=torch.bfloat16, training=True)
    y = evaluate_on("reference", case).y
    first, second = (evaluate_on("cuda", case, torch.ones_like(y)) for _ in range(2))
    assert torch.equal(first.y, second.y)
    for name, gradient in first.grads.items():
        assert torch.equal(gradient, second.grads[name]), name


@pytest.mark.parametrize("operator", MAKERS)
def test_empty_batch(operator):
    full = MAKERS[operator](N=1, bias=True, training=True)
    P, Q = evaluate_on("reference", full.but(training=False)).y.shape[2:]
    outcome = evaluate_on("cuda", full.but(x=full.tensors["x"][:0]), torch.empty(0, 6, P, Q))
    assert outcome.y.shape == (0, 6, P, Q)
    assert all((gradient == 0).all() for gradient in outcome.grads.values())


@pytest.mark.parametrize("operator", ["conv2d_bn_act", "separable_conv2d"])
def test_float64_is_refused_before_anything_runs(operator, monkeypatch):
    case = MAKERS[operator](dtype=torch.float64)
    with pytest.raises(BackendUnavailableError, match="float64 runs on the reference backend"):
        evaluate_on("cuda", case)
    monkeypatch.setitem(backends._predicates, "cuda", lambda *_: None)
    with pytest.raises(RuntimeError, match="float64 runs on the reference backend, not on"):
        evaluate_on("cuda", case)


def test_what_a_kernel_declines_is_refused_with_its_reason():
    case = separable_case(H=12, W=12, window=(9, 9), padding=4)
    with pytest.raises(RuntimeError, match="the depthwise window is larger than 7 x 7"):
        evaluate_on("cuda", case)


def test_packed_weights_of_another_layer_are_refused():
    packed = torch.ops.inception_kernels.conv2d_bn_act_pack(torch.randn(8, 8, 3, 3), [1, 1], [1, 1], [1, 1])
    with pytest.raises(RuntimeError, match="pack the weight again"):
        torch.ops.inception_kernels.conv2d_bn_act_prepacked(
            torch.randn(1, 16, 4, 4), packed, None, None, None, [8, 16, 3, 3], [1, 1], [1, 1], [1, 1], "none"
        )


def two_layers() -> torch.nn.Sequential:
    """A dense and a separable one."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(16, 16, 3, padding=1, bias=False)
    depthwise, pointwise = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), torch.nn.Conv2d(16, 24, 1)
    norms = torch.nn.BatchNorm2d(16), torch.nn.BatchNorm2d(24)
    return torch.nn.Sequential(conv, norms[0], torch.nn.ReLU(), depthwise, pointwise, norms[1], torch.nn.ReLU())


def test_training_step_of_a_swapped_network():
    """Forward, backward and an update through swapped layers, against the same network unswapped."""
    model = two_layers()
    x = torch.randn(2, 16, 9, 7)
    plain, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    with ik.use_backend("cuda"):
        assert len(ik.swap(model).swapped) == 2
    for network, backend in ((exact, "reference"), (plain, "reference"), (model, "cuda")):
        backends.reset_counters()
        with ik.use_backend(backend):
            network(x.to(next(network.parameters()).dtype)).square().mean().backward()
    theirs, truths = dict(plain.named_parameters()), dict(exact.named_parameters())
    for name, parameter in model.named_parameters():
        if name != "4.bias":  # batch statistics take it away: its gradient is zero, and what is computed is rounding
            assert_as_accurate(parameter.grad, theirs[name].grad, truths[name].grad, name)
    counts = backends.counters()
    assert any(name.startswith("separable_conv2d.backward.cuda") for name, count in counts.items() if count), counts
    theirs, truths = dict(plain.named_buffers()), dict(exact.named_buffers())
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            assert_as_accurate(buffer, theirs[name], truths[name], name)
        else:
            assert torch.equal(buffer, theirs[name])


@pytest.mark.parametrize("autocast", [False, True])
def test_steps_whose_arguments_were_checked_before(autocast, monkeypatch):
    """They have the bits of those that are checked, and launch one kernel for all that a batch norm remembers."""
    model = two_layers()
    x = torch.randn(2, 16, 9, 7).to(memory_format=torch.channels_last)
    with ik.use_backend("cuda"):
        assert len(ik.swap(model).swapped) == 2
        checked = copy.deepcopy(model)
        calls = []
        for name in ("conv2d_bn_act", "separable_conv2d"):
            operator = getattr(runtime, name)
            monkeypatch.setattr(runtime, name, lambda *a, f=operator, **k: calls.append(f) or f(*a, **k))
        for step in range(3):
            backends.reset_counters()
            outputs = []
            for network in (model, checked):
                if network is checked:
                    network.train()  # forgets
                network.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    outputs.append(network(x))
                outputs[-1].float().square().mean().backward()
            assert torch.equal(*outputs)
            for ours, theirs in zip(model.parameters(), checked.parameters(), strict=True):
                assert torch.equal(ours.grad, theirs.grad)
            assert backends.counters()["update_running_statistics.forward.cuda_f32"] == 4
            assert len(calls) == 2 * step + 4
            layers = [layer for each in model.modules() for layer in getattr(each, "swapped_layers", [])]
            assert [layer.last.backend for layer in layers] == ["cuda", "cuda"]
    for ours, theirs in zip(model.buffers(), checked.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert model[1].num_batches_tracked == 3
    calls.clear()
    with ik.use_backend("reference"):
        model(x)
    assert len(calls) == 2
