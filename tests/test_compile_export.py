"""The operators under opcheck, gradcheck, torch.compile, torch.export, autocast, functorch, and as modules."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import assert_as_accurate, needs_kernels
from operator_cases import (
    DTYPES,
    MAKERS,
    OPERATORS,
    Case,
    call,
    evaluate_on,
    in_layout,
    is_statistic,
    one_thread,
    run,
)
from oracle import COMPOSITIONS, Sum, assert_as_accurate_as_torch
from torch import Tensor, nn

import inception_kernels as ik
from inception_kernels import backends

OPS = torch.ops.inception_kernels
MODES = {"eval": False, "train": True}


# ---- opcheck: schema, fake against real (strides included), autograd registration, AOT dispatch with dynamic shapes


def dispatcher_calls() -> dict[str, tuple[Any, tuple]]:
    def channels_last(t: Tensor) -> Tensor:
        return in_layout(t, "channels_last")

    def weights(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    g = torch.Generator().manual_seed(0)
    calls: dict[str, tuple[Any, tuple]] = {}
    layouts = {"nchw": lambda t: t, "nhwc": channels_last, "slice": lambda t: in_layout(t, "channel_slice")}
    for name, layout in layouts.items():
        x, residual, w = layout(weights(2, 3, 6, 7)), weights(2, 5, 6, 7), weights(5, 3, 3, 3)
        bn = [torch.rand(5, generator=g) + 0.5 for _ in range(4)]
        bias, dw, pw, db = weights(5), weights(3, 1, 3, 3), weights(5, 3, 1, 1), weights(3)
        geometry = ([1, 1], [1, 1], [1, 1])
        calls[f"conv2d_bn_act-{name}"] = (OPS.conv2d_bn_act, (x, w, *bn, bias, residual, *geometry, "relu", 1e-5))
        calls[f"conv2d_bn_act_training-{name}"] = (
            OPS.conv2d_bn_act_training, (x, w, *bn[:2], bias, residual, *geometry, "silu", 1e-5))  # fmt: skip
        calls[f"separable_conv2d-{name}"] = (OPS.separable_conv2d, (
            x, dw, pw, *bn, db, bias, residual, *geometry, "relu", "none", "elu", 1e-5))  # fmt: skip
        calls[f"separable_conv2d_training-{name}"] = (
            OPS.separable_conv2d_training,
            (x, dw, pw, *bn[:2], db, bias, residual, *geometry, "relu", "silu", "none", 1e-5))  # fmt: skip
        bn1, bn2 = bn, [torch.rand(4, generator=g) + 0.5 for _ in range(4)]
        calls[f"asymmetric_pair-{name}"] = (OPS.asymmetric_pair, (
            x, weights(5, 3, 1, 3), *bn1, bias, weights(4, 5, 3, 1), *bn2, None,
            [1, 1], [1, 1], [0, 1], [1, 0], "relu", "relu", 1e-5))  # fmt: skip
        y = weights(2, 5, 6, 7)
        calls[f"conv2d_bn_act_backward-{name}"] = (OPS.conv2d_bn_act_backward, (
            layout(y), x, w, *bn, bias, residual, y, *geometry, "relu", True, 1e-5, [True] * 6))  # fmt: skip
        calls[f"separable_conv2d_backward-{name}"] = (OPS.separable_conv2d_backward, (
            layout(y), x, dw, pw, *bn, db, bias, residual, y, *geometry, "relu", "none", "silu", False, 1e-5,
            [True] * 8))  # fmt: skip
    calls["conv2d_bn_act_backward-masked"] = (OPS.conv2d_bn_act_backward, (
        y, x, w, *bn, None, None, None, *geometry, "relu", False, 1e-5, [False, True] + [False] * 4))  # fmt: skip
    low = [t.bfloat16() for t in (y, x, w, dw, pw)]
    mean, var = bn[2:]
    calls["conv2d_bn_act_backward-float32_weights"] = (OPS.conv2d_bn_act_backward, (
        *low[:3], None, None, mean, var, None, None, low[0], *geometry, "relu", True, 1e-5, [True] * 2 + [False] * 4,
        True))  # fmt: skip
    calls["separable_conv2d_backward-float32_weights"] = (OPS.separable_conv2d_backward, (
        *low[:2], *low[3:], None, None, mean, var, None, None, None, low[0], *geometry, "relu", "none", "silu", True, 1e-5,
        [True] * 3 + [False] * 5, True))  # fmt: skip
    plain = {
        "plain": (x, w),
        "one_channel": (weights(2, 1, 6, 7), weights(1, 1, 3, 3)),
        "to_one_channel": (weights(2, 4, 6, 7), weights(1, 4, 3, 3)),
        "to_one_pixel": (channels_last(weights(2, 4, 1, 1)), weights(5, 4, 3, 3)),
        "one_image_one_pixel": (weights(1, 4, 1, 1), weights(5, 4, 3, 3)),
        "empty": (weights(0, 4, 6, 7), weights(5, 4, 3, 3)),
    }
    for name, tensors in plain.items():
        calls[f"conv2d_bn_act-{name}"] = (OPS.conv2d_bn_act, (*tensors, *[None] * 6, *geometry, "none", 1e-5))
    packed = OPS.conv2d_bn_act_pack(w, *geometry)
    calls["conv2d_bn_act_pack"] = (OPS.conv2d_bn_act_pack, (w, *geometry))
    calls["conv2d_bn_act_prepacked"] = (
        OPS.conv2d_bn_act_prepacked, (x, packed, bn[0], bn[1], None, [5, 3, 3, 3], *geometry, "relu"))  # fmt: skip
    row, column = weights(5, 3, 1, 3), weights(4, 5, 3, 1)
    pair = ([1, 1], [1, 1], [0, 1], [1, 0])  # strides and paddings
    packed_row = OPS.conv2d_bn_act_pack(row, [1, 1], [0, 1], [1, 1])
    packed_column = OPS.conv2d_bn_act_pack(column, [1, 1], [1, 0], [1, 1])
    calls["asymmetric_pair_prepacked"] = (OPS.asymmetric_pair_prepacked, (
        x, packed_row, *bn[:2], [5, 3, 1, 3], packed_column, None, weights(4), [4, 5, 3, 1],
        *pair, "relu", "none"))  # fmt: skip
    packed_dw, packed_pw = OPS.separable_conv2d_pack(dw, pw, *geometry)
    calls["separable_conv2d_pack"] = (OPS.separable_conv2d_pack, (dw, pw, *geometry))
    calls["separable_conv2d_prepacked"] = (OPS.separable_conv2d_prepacked, (
        x, packed_dw, packed_pw, db, bn[0], bn[1], None, [5, 3, 3, 3], *geometry, "relu", "none", "relu"))  # fmt: skip
    return calls


CALLS = dispatcher_calls() if backends.available()["cpu"] is None else {}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    op, arguments = CALLS[name]
    trainable = ("conv2d_bn_act", "separable_conv2d", "asymmetric_pair")
    tests = ["test_schema", "test_autograd_registration"]
    if not name.endswith("_pack"):  # how many bytes a packed weight has is the instruction set's secret
        tests.append("test_faketensor")
    if name.split("-")[0].removesuffix("_training") in trainable:
        tests.append("test_aot_dispatch_dynamic")
        statistics = (4, 5) if not name.startswith(("asym", "separable")) and "training" not in name else ()
        statistics = (5, 6) if name.startswith("separable_conv2d-") else statistics
        statistics = (4, 5, 10, 11) if name.startswith("asym") else statistics
        arguments = tuple(
            a.detach().requires_grad_() if isinstance(a, Tensor) and i not in statistics else a
            for i, a in enumerate(arguments)
        )
    torch.library.opcheck(op.default, arguments, test_utils=tests)


def test_every_operator_is_checked():
    """No operator of the library stays outside this file."""
    defined = {n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("inception_kernels::")}
    assert {n for n in defined if n.startswith(tuple(OPERATORS))} == {n.split("-")[0] for n in CALLS}


# ---- gradcheck: float64 through the very kernels


def gradcheck_case(operator: str, training: bool, **more: Any) -> Case:
    sizes: dict[str, Any] = dict(N=2, C=2, H=3, W=4, K=2, bias=True, dtype=torch.float64, training=training, seed=8)
    if operator == "asymmetric_pair":
        sizes |= dict(M=2)
    else:
        sizes |= dict(window=(2, 3), stride=(1, 2), padding=(0, 1), residual=True)
    if operator == "separable_conv2d":
        sizes |= dict(depthwise_bias=True)
    return MAKERS[operator](**sizes | more)


def gradcheck(case: Case, **options: Any) -> bool:
    names = [n for n in case.tensors if not is_statistic(n)]

    def function(*values: Tensor) -> Tensor:
        tensors = {n: t.clone() for n, t in case.tensors.items()} | dict(zip(names, values, strict=True))
        return run(replace(case, tensors=tensors), "cpu")

    leaves = [case.tensors[n].clone().requires_grad_() for n in names]
    backends.reset_counters()
    with one_thread():
        passed = torch.autograd.gradcheck(function, leaves, nondet_tol=0.0, **options)
    assert any(".cpu_" in n and "backward" in n for n, c in backends.counters().items() if c)
    return passed


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("activation", ["none", "elu", "silu", "relu", "relu6"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_gradcheck(operator, activation, mode):
    """Random pre-activations keep a distance from the kinks that is far larger than gradcheck's step of 1e-6."""
    more: dict[str, Any] = {"activation": activation}
    if operator == "separable_conv2d":
        more |= {"input_activation": "silu", "mid_activation": activation}
    elif operator == "asymmetric_pair":
        more |= {"mid_activation": activation}
    assert gradcheck(gradcheck_case(operator, MODES[mode], **more))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_gradcheck_without_batch_norm_and_dilated(operator, mode):
    more: dict[str, Any] = dict(bn=False, activation="silu")
    if operator != "asymmetric_pair":
        more |= dict(dilation=(2, 1), padding=(1, 1))
    assert gradcheck(gradcheck_case(operator, MODES[mode], **more))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_second_derivatives_are_refused_clearly(operator, mode):
    """Not supported by the kernels: an error that names the operator and the way out, never a wrong number."""
    case = gradcheck_case(operator, MODES[mode], activation="silu")
    leaves = {n: t.clone().requires_grad_(not is_statistic(n)) for n, t in case.tensors.items()}
    y = run(replace(case, tensors=leaves), "cpu")
    (gradient,) = torch.autograd.grad(y.square().sum(), leaves["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="reference"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("operator", OPERATORS)
def test_second_derivatives_on_the_reference(operator):
    case = gradcheck_case(operator, False, activation="silu")
    leaves = {n: t.clone().requires_grad_(not is_statistic(n)) for n, t in case.tensors.items()}
    (gradient,) = torch.autograd.grad(
        run(replace(case, tensors=leaves), "reference").square().sum(), leaves["x"], create_graph=True
    )
    gradient.square().sum().backward()
    assert torch.isfinite(leaves["x"].grad).all()


# ---- torch.compile


def compiled_equals_eager(case: Case, *, dynamic: bool | None = None, compiler: str = "aot_eager") -> None:
    """Forward, every gradient and the running statistics, without a graph break, through the kernels."""
    torch._dynamo.reset()
    without_gradient = run(case.but(**{n: t.clone() for n, t in case.tensors.items()}), "cpu")
    grad_y = torch.randn(without_gradient.shape, generator=torch.Generator().manual_seed(3)).to(without_gradient)
    eager = evaluate_on("cpu", case, grad_y)

    def function(tensors: dict[str, Tensor]) -> Tensor:
        return call(OPERATORS[case.operator], replace(case, tensors=tensors))

    leaves = {n: t.clone().requires_grad_(not is_statistic(n)) for n, t in case.tensors.items()}
    backends.reset_counters()
    with backends.use_backend("cpu"):
        y = torch.compile(function, fullgraph=True, backend=compiler, dynamic=dynamic)(leaves)
        y.backward(grad_y)
    counts = {n for n, c in backends.counters().items() if c}
    assert any(".forward.cpu_" in n for n in counts) and any("backward" in n for n in counts), counts
    # An eager call in evaluation rounds the raw convolution, which it keeps for its gradient.
    assert torch.equal(y, eager.y if case.options.get("training") else without_gradient)
    assert y.stride() == eager.y.stride()
    for name, t in leaves.items():
        if is_statistic(name):
            torch.testing.assert_close(t, eager.statistics[name], rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(t.grad, eager.grads[name]), name


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_compile_without_a_graph_break(operator, mode, layout):
    case = gradcheck_case(operator, MODES[mode], dtype=torch.float32)
    compiled_equals_eager(case.but(x=in_layout(case.tensors["x"], layout)))


def test_compile_in_low_precision():
    compiled_equals_eager(MAKERS["conv2d_bn_act"](dtype=torch.bfloat16, bn_dtype=torch.float32, training=True))


@pytest.mark.parametrize("operator", ["conv2d_bn_act", "separable_conv2d"])
def test_compile_with_inductor(operator):
    compiled_equals_eager(gradcheck_case(operator, True, dtype=torch.float32), compiler="inductor")


@pytest.mark.parametrize("operator", OPERATORS)
def test_compile_with_dynamic_shapes(operator):
    """One compilation for every batch and image size."""
    torch._dynamo.reset()
    case = MAKERS[operator]()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def function(x: Tensor) -> Tensor:
        return run(case.but(x=x))

    compilations = []
    for shape in ((2, 5, 7, 9), (3, 5, 11, 8), (5, 5, 19, 23)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        assert torch.equal(function(x), run(case.but(x=x)))
        compilations.append(counter.frame_count)
    assert len(set(compilations)) == 1, compilations


@pytest.mark.parametrize("mode", MODES)
def test_compiled_module_keeps_training(mode):
    """The modules compile whole, batch counter and running statistics included."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = nn.Sequential(
        ik.nn.ConvBNAct(3, 8, (1, 3), padding=(0, 1)), ik.nn.SeparableConv2d(8, 6, input_activation="relu"),
        ik.nn.AsymmetricPair(6, 7, 5, n=3),
    ).train(MODES[mode])  # fmt: skip
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 8, 8)
    for _ in range(2):
        expected, y = eager(x), compiled(x)
        assert torch.equal(y, expected)
        expected.square().sum().backward()
        y.square().sum().backward()
    for (name, p), q in zip(eager.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, p), q in zip(eager.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(p, q[1], rtol=1e-6, atol=1e-7, msg=name)
    assert int(eager[0].bn.num_batches_tracked) == (2 if MODES[mode] else 0)


def test_fake_tensors_pass_through_the_public_functions():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for operator in OPERATORS:
        for training in (False, True):
            with FakeTensorMode() as mode:
                case = MAKERS[operator](training=training)
                case = replace(case, tensors={n: mode.from_tensor(t) for n, t in case.tensors.items()})
                y = run(case)
            real = run(MAKERS[operator](training=training))
            assert y.shape == real.shape and y.stride() == real.stride()


# ---- torch.export


@pytest.mark.parametrize("module", ["conv", "separable", "pair"])
def test_export_saves_and_loads(module):
    torch.manual_seed(0)
    layer = {
        "conv": lambda: ik.nn.ConvBNAct(3, 8, (1, 7), padding=(0, 3)),
        "separable": lambda: ik.nn.SeparableConv2d(3, 8, input_activation="relu", activation="silu"),
        "pair": lambda: ik.nn.AsymmetricPair(3, 6, 8),
    }[module]().eval()
    x = torch.randn(2, 3, 8, 9)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    assert any("inception_kernels" in str(node.target) for node in program.graph.nodes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for n in (1, 2, 5):
        x = torch.randn(n, 3, 8, 9)
        with torch.no_grad():
            assert torch.equal(loaded(x), layer(x))


# ---- autocast


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_autocast(operator, backend, dtype, mode):
    """float32 in, low precision inside and out, float32 gradients and statistics; as accurate as PyTorch's autocast."""
    case = MAKERS[operator](N=3, C=17, K=33, bias=True, training=MODES[mode], activation="silu")
    if operator == "asymmetric_pair":
        case = case.but(mid_activation="silu")
    grad_y = torch.randn(run(case.but(training=False)).shape, generator=torch.Generator().manual_seed(3))
    grad_y = grad_y.to(DTYPES[dtype])

    def evaluated(function, c: Case, enabled: bool) -> tuple[Tensor, dict[str, Tensor]]:
        leaves = {n: t.clone().requires_grad_(not is_statistic(n)) for n, t in c.tensors.items()}
        with torch.autocast("cpu", dtype=DTYPES[dtype], enabled=enabled):
            y = call(function, replace(c, tensors=leaves))
        y.backward(grad_y.to(y.dtype))
        return y.detach(), {n: t.grad if t.requires_grad else t for n, t in leaves.items()}

    composition = COMPOSITIONS[operator]
    with backends.use_backend(backend):
        ours, our_grads = evaluated(OPERATORS[operator], case, True)
    torchs, torch_grads = evaluated(composition, case, True)
    exact, exact_grads = evaluated(composition, case.cast(torch.float64), False)
    assert ours.dtype == DTYPES[dtype]
    assert_as_accurate_as_torch(ours, exact, [torchs], name="y")
    for name, grad in our_grads.items():
        assert grad.dtype == torch.float32, name
        assert_as_accurate_as_torch(
            grad, exact_grads[name], [torch_grads[name]], name=name, compute_dtype=DTYPES[dtype],
            total=Sum(count=1, norm=4 * exact_grads[name].abs().max().item()),
        )  # fmt: skip


WEIGHTS = {
    "conv2d_bn_act": ["weight"],
    "separable_conv2d": ["depthwise_weight", "pointwise_weight"],
    "asymmetric_pair": ["weight1", "weight2"],
}


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("operator", WEIGHTS)
def test_gradients_of_float32_weights_are_not_rounded(operator, dtype):
    case = MAKERS[operator](N=3, C=17, K=33, training=True)
    leaves = {n: t.clone().requires_grad_(n in WEIGHTS[operator]) for n, t in case.tensors.items()}
    with torch.autocast("cpu", dtype=DTYPES[dtype]), backends.use_backend("cpu"):
        y = call(OPERATORS[operator], replace(case, tensors=leaves))
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype))
    for name in WEIGHTS[operator]:
        grad = leaves[name].grad
        assert grad.dtype == torch.float32
        assert grad.shape == leaves[name].shape
        assert (grad != grad.to(DTYPES[dtype]).float()).float().mean() > 0.5, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_weights_are_for_inputs_of_16_bits(dtype):
    operator, arguments = CALLS["conv2d_bn_act_backward-nhwc"]
    arguments = [t.to(dtype) if isinstance(t, Tensor) else t for t in arguments]
    with pytest.raises(RuntimeError, match="float32_weights: expected an input of 16 bits"):
        operator(*arguments, True)


def test_autocast_leaves_float64_alone():
    case = MAKERS["conv2d_bn_act"](dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(case, "cpu"), run(case, "cpu").double())


# ---- functorch


@pytest.mark.parametrize("operator", OPERATORS)
def test_vmap(operator):
    case = MAKERS[operator]()
    xs = torch.randn(3, 2, 5, 7, 9, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the slow fallback says that it is slow
        y = torch.vmap(lambda x: run(case.but(x=x), "cpu"))(xs)
    assert torch.equal(y, torch.stack([run(case.but(x=x), "cpu") for x in xs]))


@pytest.mark.parametrize("operator", OPERATORS)
def test_functorch_grad_is_refused_by_pytorch_itself(operator):
    """torch.library.register_autograd has no functorch rule: a clear error, no wrong gradient."""
    case = MAKERS[operator](activation="silu")
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: run(case.but(x=x), "cpu").square().sum())(case.tensors["x"])


def test_functional_call_uses_the_given_parameters():
    torch.manual_seed(0)
    layer, other = (ik.nn.ConvBNAct(3, 8, 3).eval() for _ in range(2))
    x = torch.randn(2, 3, 8, 8)
    y = torch.func.functional_call(layer, dict(other.state_dict()), (x,))
    assert torch.equal(y, other(x))
    assert not torch.equal(y, layer(x))


# ---- modules


MODULES = {
    "conv": lambda: ik.nn.ConvBNAct(3, 8, (1, 7), padding=(0, 3), bias=True, activation="silu"),
    "separable": lambda: ik.nn.SeparableConv2d(3, 8, stride=2, input_activation="relu", bias=True),
    "separable_without_bn": lambda: ik.nn.SeparableConv2d(3, 8, batch_norm=False),
    "pair": lambda: ik.nn.AsymmetricPair(3, 6, 8, n=3, order="nx1_1xn"),
}


def by_children(module: nn.Module, x: Tensor) -> Tensor:
    """The module's result from its torch.nn children alone."""
    from oracle import activate

    if isinstance(module, ik.nn.ConvBNAct):
        return activate(module.bn(module.conv(x)), module.activation)
    if isinstance(module, ik.nn.AsymmetricPair):
        return by_children(module.second, by_children(module.first, x))
    before, mid, after = module.activations
    z = module.pointwise(activate(module.depthwise(activate(x, before)), mid))
    return activate(z if module.bn is None else module.bn(z), after)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_hooks_of_children_run(name, training):
    """Among them the ones that compute a weight in every call."""
    torch.manual_seed(0)
    module = MODULES[name]().train(training)
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    module(x)
    convolution = next(each for each in reversed(list(module.modules())) if isinstance(each, nn.Conv2d))
    nn.utils.weight_norm(convolution)
    seen = []
    convolution.register_forward_hook(lambda *call: seen.append(1))
    for step in range(1, 3):
        with torch.no_grad():
            convolution.weight_g.mul_(2)
        expected = by_children(module, x)
        seen.clear()
        y = module(x)
        y.square().sum().backward()
        assert seen == [1], step
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("name", MODULES)
def test_module_copies_and_pickles(name):
    torch.manual_seed(0)
    module = MODULES[name]()
    module.train()(torch.randn(2, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(saved, weights_only=False)]
    fresh = MODULES[name]()
    fresh.load_state_dict(module.state_dict(), strict=True)
    expected = module.eval()(x)
    for twin in (*copies, fresh):
        assert torch.equal(twin.eval()(x), expected)
        assert list(twin.state_dict()) == list(module.state_dict())


CHANGES = ("as_made", "other_eps", "other_momentum", "cumulative", "frozen", "no_statistics")


@pytest.mark.parametrize(
    ("name", "change"), [(n, c) for n in MODULES for c in CHANGES if c == "as_made" or n != "separable_without_bn"]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_module_does_what_its_children_do(name, change, layout):
    """In training and evaluation, whatever the batch norms were set to after construction."""
    torch.manual_seed(0)
    module = MODULES[name]()
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for i, bn in enumerate(norms):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.uniform_(bn.bias, -0.5, 0.5)
        if change == "other_eps" and i == len(norms) - 1:
            bn.eps = 0.5
        elif change == "other_momentum" and i == len(norms) - 1:
            bn.momentum = 0.6
        elif change == "cumulative":
            bn.momentum = None
        elif change == "frozen" and i == len(norms) - 1:
            bn.eval()
        elif change == "no_statistics":
            bn.track_running_stats, bn.running_mean, bn.running_var = False, None, None
    twin = copy.deepcopy(module).double()
    for step in range(7):
        if step == 3:
            module.eval()
            twin.eval()
        x = torch.randn(4, 3, 8, 8).to(memory_format=layout)
        with torch.set_grad_enabled(step != 5):  # nothing is trained then, and weights may be kept packed
            y, expected = module(x), by_children(twin, x.double())
        assert y.is_contiguous(memory_format=layout)
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
        for (key, a), b in zip(module.state_dict().items(), twin.state_dict().values(), strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5, msg=f"{key} in step {step}")


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_module_is_unchanged_by_bad_input(name, training):
    module = MODULES[name]().train(training)
    good = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.set_grad_enabled(training):
        module(good)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    bads = (torch.randn(2, 4, 8, 8), torch.randn(3, 8, 8), good.long(), good.double(), good[:, :2])
    for bad in bads:
        bad = bad.contiguous(memory_format=torch.channels_last) if bad.dim() == 4 else bad
        with pytest.raises((ValueError, TypeError)), torch.set_grad_enabled(training):
            module(bad)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key


def prepared_of(module: nn.Module) -> Any:
    return module._prepared.held if isinstance(module, ik.nn.AsymmetricPair) else module._layer._prepared.held


def halve_a_weight(module: nn.Module) -> None:
    with torch.no_grad():
        next(m for m in module.modules() if isinstance(m, nn.Conv2d)).weight *= 0.5


def other_activation(module: nn.Module) -> None:
    if isinstance(module, ik.nn.SeparableConv2d):
        module.activations = ("silu", "relu", "elu")
    else:
        (module.first if isinstance(module, ik.nn.AsymmetricPair) else module).activation = "elu"


def other_eps(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps = 0.5


@needs_kernels
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("change", [halve_a_weight, other_activation, other_eps, nn.Module.train])
@pytest.mark.parametrize("name", MODULES)
def test_module_keeps_what_it_packed_until_something_changes(name, change, autocast):
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)

    def evaluate(each: nn.Module) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return each(x)

    keys = list(module.state_dict())
    first = evaluate(module)
    kept = prepared_of(module)
    assert kept is not None
    ik.conv2d_bn_act(torch.ones(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double())
    assert torch.equal(evaluate(module), first)
    assert prepared_of(module) is kept
    choice, separable = backends.last_choice(), name.startswith("separable")
    operator = "asymmetric_pair" if name == "pair" else "separable_conv2d" if separable else "conv2d_bn_act"
    assert (choice.operator, choice.backend, choice.reasons) == (operator, "cpu", {})
    assert list(module.state_dict()) == keys
    change(module)
    module.eval()
    assert torch.equal(evaluate(module), evaluate(pickle.loads(pickle.dumps(module))))
    assert prepared_of(module) is not kept or (name == "separable_without_bn" and change is other_eps)


@needs_kernels
@pytest.mark.parametrize("name", ["conv", "separable"])
def test_module_adds_a_residual_to_what_it_keeps(name):
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        residual = torch.randn_like(module(x))
        kept = module(x, residual)
        assert module._layer.last.ran == "prepared"
        assert_as_accurate(kept, *by_children_in_both(module, x, residual))
        with pytest.raises(ValueError, match="residual: expected"):
            module(x, residual[:, :, 1:])
        with pytest.raises(TypeError, match="residual: expected"):
            module(x, residual.double())
    module.train()
    for step in range(3):
        given = residual if step < 2 else None
        plain, exact = copy.deepcopy(module), copy.deepcopy(module).double()
        theirs, truth = by_children_with(plain, x, given), by_children_with(exact, x.double(), given)
        assert_as_accurate(module(x, given), theirs, truth)
        assert_as_accurate(module.bn.running_var, plain.bn.running_var, exact.bn.running_var)
        assert module.bn.num_batches_tracked == step + 1


def by_children_in_both(module: nn.Module, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """In float32 and float64."""
    exact = copy.deepcopy(module).double()
    return by_children_with(module, x, residual), by_children_with(exact, x.double(), residual)


def by_children_with(module: nn.Module, x: Tensor, residual: Tensor | None) -> Tensor:
    from oracle import activate

    added = 0 if residual is None else residual.to(x.dtype)
    if isinstance(module, ik.nn.ConvBNAct):
        return activate(module.bn(module.conv(x)) + added, module.activation)
    before, mid, after = module.activations
    z = module.bn(module.pointwise(activate(module.depthwise(activate(x, before)), mid)))
    return activate(z + added, after)


def test_module_with_another_kind_of_batch_norm_calls_the_operator():
    torch.manual_seed(0)
    module = ik.nn.ConvBNAct(3, 8, 3, padding=1).eval()
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = ik.nn.ConvBNAct.forward(copy.deepcopy(module), x.contiguous())
        module.bn = nn.SyncBatchNorm.convert_sync_batchnorm(module.bn)
        assert torch.equal(module(x), expected)
    assert module._layer is None or module._layer.last is None
    with pytest.raises(TypeError, match="got a SyncBatchNorm"):
        module.train()(x)
