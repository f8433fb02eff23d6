"""plan, swap, unswap, swapped, explain: what survives, what is undone, what is refused."""

import copy
import io
import json
import warnings

import pytest
import torch
from helpers import assert_as_accurate, randomize_batch_norm
from swap_models import (
    BasicConv2d,
    Branches,
    Residual,
    Separable,
    assert_gradients_as_accurate,
    conv_bn,
)
from torch import nn

from inception_kernels import backends
from inception_kernels.swap import (
    SwapError,
    SwapVerificationError,
    explain,
    plan,
    swap,
    swapped,
    unswap,
)
from inception_kernels.swap.layers import Swapped

IMAGE = (2, 3, 21, 19)


def build(kind: type[nn.Module] = Residual, **options) -> nn.Module:
    torch.manual_seed(0)
    return randomize_batch_norm(kind(**options))


def image(seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(IMAGE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def evaluate(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


def assert_same_results(model: nn.Module, original: nn.Module, x: torch.Tensor) -> None:
    exact = evaluate(copy.deepcopy(original).double(), x.double())
    assert_as_accurate(evaluate(model, x), evaluate(original, x), exact)


def fused_calls() -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, number in backends.counters().items():
        operator, direction, _ = name.split(".", 2) if name.count(".") >= 2 else (name, "", "")
        if direction == "forward":
            counts[operator] = counts.get(operator, 0) + number
    return counts


@pytest.mark.parametrize("kind", [Branches, Residual])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_evaluation_is_as_accurate_and_undo_is_exact(kind, dtype):
    model = build(kind).to(dtype).eval()
    original = copy.deepcopy(model)
    x = image(dtype=dtype)
    before = evaluate(model, x)
    report = swap(model)
    backends.reset_counters()
    assert_same_results(model, original, x)
    expected = {Branches: {"conv2d_bn_act": 4}, Residual: {"conv2d_bn_act": 2, "separable_conv2d": 4}}[kind]
    assert fused_calls() == expected
    assert not report.declined
    assert unswap(model) == len(report.swapped)
    assert torch.equal(evaluate(model, x), before)
    assert [type(module) for module in model.modules()] == [type(module) for module in original.modules()]
    assert [sorted(vars(module)) for module in model.modules()] == [
        sorted(vars(module)) for module in original.modules()
    ]


def step(model: nn.Module, x: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    model(x.to(next(model.parameters()).dtype)).square().sum().backward()


@pytest.mark.parametrize("kind", [Branches, Residual])
def test_training_steps_are_the_same_computation(kind):
    """In float64, where rounding hides nothing: every gradient, statistic and batch count after two steps."""
    model = build(kind).double().train()
    plain = copy.deepcopy(model)
    swap(model)
    for seed in range(2):
        for candidate in (model, plain):
            step(candidate, image(seed))
        for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-11, msg=name)
    for (name, buffer), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("kind", [Branches, Residual])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_steps_are_as_accurate(kind, dtype):
    model = build(kind).to(dtype).train()
    # The layout that the swapped model computes in: PyTorch's own rounding depends on it.
    plain = copy.deepcopy(model).to(memory_format=torch.channels_last)
    exact = copy.deepcopy(model).double()
    swap(model)
    for seed in range(2):
        x = image(seed, dtype).contiguous(memory_format=torch.channels_last)
        for candidate in (model, plain, exact):
            step(candidate, x)
        assert_gradients_as_accurate(model, plain, exact)
    buffers, wide = dict(plain.named_buffers()), dict(exact.named_buffers())
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            assert_as_accurate(buffer, buffers[name], wide[name], name)
        else:
            assert torch.equal(buffer, buffers[name]), name


def test_gradient_of_the_input():
    model = build().eval()
    plain = copy.deepcopy(model)
    swap(model)
    gradients = []
    for candidate in (model, plain, copy.deepcopy(plain).double()):
        x = image().to(candidate.fc.weight.dtype).requires_grad_()
        candidate(x).square().sum().backward()
        gradients.append(x.grad)
    assert_as_accurate(*gradients)


def test_keys_parameters_optimizer_and_isinstance_survive():
    model = build().train()
    keys = list(model.state_dict())
    parameters = [id(parameter) for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    swap(model)
    assert list(model.state_dict()) == keys
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert isinstance(model.block.rep, nn.Sequential)
    assert isinstance(model.conv1, nn.Conv2d)
    before = model.conv1.weight.clone()
    model(image()).sum().backward()
    optimizer.step()
    assert not torch.equal(model.conv1.weight, before)
    model.load_state_dict(build().state_dict(), strict=True)


def test_outer_hooks_run():
    model = build().eval()
    seen = []
    model.block.register_forward_hook(lambda module, args, result: seen.append("block"))
    model.block.rep.register_forward_pre_hook(lambda module, args: seen.append("rep"))
    swap(model)
    evaluate(model, image())
    assert seen == ["rep", "block"]


def test_deepcopy_is_swapped_and_independent():
    model = build().eval()
    x = image()
    swap(model)
    expected = evaluate(model, x)
    twin = copy.deepcopy(model)
    backends.reset_counters()
    assert torch.equal(evaluate(twin, x), expected)
    assert fused_calls() == {"conv2d_bn_act": 2, "separable_conv2d": 4}
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert torch.equal(evaluate(model, x), expected)
    assert not torch.equal(evaluate(twin, x), expected)
    unswap(twin)
    assert any(isinstance(module, Swapped) for module in model.modules())


def test_a_copied_leader_alone_is_a_plain_convolution():
    model = build().eval()
    x = image()
    plain = evaluate(model.conv1, x)
    swap(model)
    alone = copy.deepcopy(model.conv1)
    assert torch.equal(evaluate(alone, x), plain)


def test_torch_save_and_load():
    model = build().eval()
    x = image()
    swap(model)
    expected = evaluate(model, x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    backends.reset_counters()
    assert torch.equal(evaluate(loaded, x), expected)
    assert fused_calls() == {"conv2d_bn_act": 2, "separable_conv2d": 4}
    assert unswap(loaded) == 6


def test_torch_load_in_a_new_process(tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = image()
    swap(model)
    torch.save((model, x, evaluate(model, x)), tmp_path / "model.pt")
    code = (
        "import sys, torch\n"
        "model, x, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "with torch.no_grad():\n"
        "    assert torch.allclose(model(x), expected, rtol=1e-6, atol=1e-6)\n"
        "assert type(model).__name__ == 'FusedSequential', type(model)\n"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], check=True, cwd=root)


def test_data_parallel_replica_matches():
    """A replica holds its parameters as plain attributes, on one device as on several."""
    from torch.nn.parallel.replicate import _replicatable_module

    model = build().eval()
    original = copy.deepcopy(model)
    swap(model)
    assert _replicatable_module(model)
    replica = _replicate_on_cpu(model)
    assert_same_results(replica, original, image())


def _replicate_on_cpu(model: nn.Module) -> nn.Module:
    """What torch.nn.parallel.replicate does for each device, with copies on the CPU."""
    modules = list(model.modules())
    replicas = {module: module._replicate_for_data_parallel() for module in modules}
    for module in modules:
        replica = replicas[module]
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else replicas[child]
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter.detach().clone())
        for name, buffer in module._buffers.items():
            replica._buffers[name] = None if buffer is None else buffer.clone()
    return replicas[model]


def test_swapping_twice_changes_nothing():
    model = build().eval()
    first = swap(model)
    classes = [type(module) for module in model.modules()]
    sites = [vars(module).get("_ik_site") for module in model.modules()]
    second = swap(model)
    assert [type(module) for module in model.modules()] == classes
    assert [vars(module).get("_ik_site") for module in model.modules()] == sites
    assert second.swapped == first.swapped
    assert second.declined == first.declined
    assert unswap(model) == 6
    assert unswap(model) == 0


def test_swapped_context_manager():
    model = build().eval()
    x = image()
    before = evaluate(model, x)
    with swapped(model) as report:
        assert len(report.swapped) == 6
        assert any(isinstance(module, Swapped) for module in model.modules())
    assert not any(isinstance(module, Swapped) for module in model.modules())
    with pytest.raises(KeyError), swapped(model):
        raise KeyError
    assert torch.equal(evaluate(model, x), before)
    swap(model)
    with swapped(model):
        pass
    assert unswap(model) == 6


def test_plan_changes_nothing_and_serialises():
    model = build().train()
    state = copy.deepcopy(model.state_dict())
    classes = [type(module) for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    random_state = torch.get_rng_state()
    result = plan(model, image())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [type(module) for module in model.modules()] == classes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    document = json.loads(result.to_json())
    assert document["convolutions"] == result.convolutions == 10
    assert [record["path"] for record in document["swapped"]] == [
        "conv1", "block.skip", "block.rep.1", "block.rep.4", "block.rep.7", "conv3",
    ]  # fmt: skip
    stem, tail = document["swapped"][0], document["swapped"][-1]
    assert stem["operator"] == "conv2d_bn_act"
    assert stem["input_shape"] == [2, 3, 21, 19]
    assert stem["output_shape"] == [2, 8, 10, 9]
    assert tail["convolutions"] == ["conv3.conv1", "conv3.pointwise"]
    assert tail["activations"] == {"input": "none", "mid": "none", "output": "relu"}
    assert "separable_conv2d" in str(result)
    assert "block.rep.4" in str(result)


def test_predicted_gain_counts_bytes():
    model = conv_bn(nn.Conv2d(4, 6, 3, padding=1, bias=False))
    (record,) = plan(model, torch.zeros(2, 4, 5, 7)).swapped
    read, written, weights = 2 * 4 * 35, 2 * 6 * 35, 6 * 4 * 9
    assert record.gain == pytest.approx((read + weights + 5 * written) / (read + weights + written))
    (record,) = plan(model).swapped
    assert record.gain == pytest.approx((4 + 5 * 6) / (4 + 6))


def test_a_plan_leaves_out_what_was_taken_from_it():
    model = build().eval()
    chosen = plan(model, image())
    chosen.swapped = [record for record in chosen.swapped if record.path.startswith("block.rep")]
    report = swap(model, plan=chosen)
    assert [record.path for record in report.swapped] == ["block.rep.1", "block.rep.4", "block.rep.7"]
    assert report.swapped[0].input_shape == [2, 8, 10, 9]
    backends.reset_counters()
    evaluate(model, image())
    assert fused_calls() == {"separable_conv2d": 3}


def test_a_plan_that_no_longer_fits_is_refused():
    model = build().eval()
    old = plan(model)
    model.bn1.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match=r"does not fit this model(.|\n)*conv1: bn1: BatchNorm2d has a forward hook"):
        swap(model, plan=old)
    assert not any(isinstance(module, Swapped) for module in model.modules())


def test_strict_lists_every_declined_layer():
    model = nn.Sequential(conv_bn(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(SwapError, match=r"1 convolution\(s\) cannot be swapped:\n  1: padding_mode='reflect'"):
        swap(model, strict=True)
    assert not any(isinstance(module, Swapped) for module in model.modules())
    assert swap(build(), strict=True).declined == []


def test_min_swapped():
    model = build()
    with pytest.raises(SwapError, match="min_swapped=7: only 6"):
        swap(model, min_swapped=7)
    assert not any(isinstance(module, Swapped) for module in model.modules())
    with pytest.raises(SwapError, match="min_swapped=1: only 0"):
        swap(nn.Linear(2, 2), min_swapped=1)


def test_zero_swaps_warns():
    with pytest.warns(UserWarning, match="nothing was swapped"):
        swap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()))


def test_not_a_module():
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got str"):
        swap("inception_v3")


def test_verify_reports_errors():
    model = build().eval()
    report = swap(model, verify=image())
    (error,) = report.verification
    assert error.ok
    assert error.dtype == "float32"
    assert "Verified against float64" in str(report)
    json.loads(report.to_json())


def test_verify_undoes_a_wrong_swap(monkeypatch):
    from inception_kernels.swap import runtime

    model = build().eval()
    before = evaluate(model, image())
    build_prepared = runtime.FusedLayer._build

    def wrong(self, *arguments):
        run = build_prepared(self, *arguments)
        return lambda x: run(x) * 1.01

    chosen = plan(model)
    monkeypatch.setattr(runtime.FusedLayer, "_build", wrong)
    monkeypatch.setattr(runtime.FusedLayer, "_run_operator", lambda self, x, parts: wrong)
    with pytest.raises(SwapVerificationError, match="the swap was undone"):
        swap(model, plan=chosen, verify=image())
    assert not any(isinstance(module, Swapped) for module in model.modules())
    assert torch.equal(evaluate(model, image()), before)


def test_nothing_changes_when_verify_cannot_run():
    model = build().eval()
    with pytest.raises(RuntimeError):
        swap(model, verify=torch.zeros(1, 5, 9, 9))
    assert not any(isinstance(module, Swapped) for module in model.modules())


def test_explain_tells_what_ran():
    model = build().eval()
    assert "no fused layers" in str(explain(model))
    swap(model)
    assert {layer.ran for layer in explain(model).layers} == {"not called yet"}
    evaluate(model, image())
    layers = explain(model).layers
    assert [layer.converted for layer in layers].count(True) == 1
    assert layers[0].path == "conv1"
    assert layers[0].converted
    expected = "prepared" if backends.available()["cpu"] is None else "operator"
    assert {layer.ran for layer in layers} == {expected}
    with backends.use_backend("reference"):
        evaluate(model, image())
    assert {(layer.ran, layer.backend) for layer in explain(model).layers} == {("operator", "reference")}
    handle = model.bn1.register_forward_hook(lambda *args: None)
    evaluate(model, image())
    first = explain(model).layers[0]
    assert (first.ran, first.reasons) == ("original", {"fused": "a FusedBatchNorm2d inside it has hooks"})
    assert "has hooks" in str(explain(model))
    handle.remove()
    json.loads(explain(model).to_json())


def test_output_is_channels_last_whatever_comes_in():
    model = conv_bn(nn.Conv2d(3, 4, 3)).eval()
    swap(model)
    for x in (image(), image().contiguous(memory_format=torch.channels_last)):
        for context in (torch.no_grad(), torch.enable_grad()):
            with context:
                assert model(x).is_contiguous(memory_format=torch.channels_last)


def test_backend_is_honoured():
    model = build().eval()
    swap(model)
    backends.reset_counters()
    with backends.use_backend("reference"):
        evaluate(model, image())
    counts = {name: count for name, count in backends.counters().items() if count and "forward" in name}
    assert counts == {"conv2d_bn_act.forward.reference": 2, "separable_conv2d.forward.reference": 4}


def test_calling_parts_directly_stays_exact():
    """Chains leave their children alone; a leader that is called alone notices and stops leading."""
    model = build().eval()
    x = image()
    hidden = evaluate(model.act1, evaluate(model.bn1, evaluate(model.conv1, x)))
    sliced = evaluate(model.block.rep[:2], hidden)
    raw = evaluate(model.conv1, x)
    swap(model)
    assert torch.equal(evaluate(model.block.rep[:2], hidden), sliced)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(model, x)
        evaluate(model, x)
    evaluate(model.conv1, x)
    with pytest.warns(RuntimeWarning, match="already included what follows it"):
        assert torch.equal(evaluate(model.conv1, x), raw)
    assert torch.equal(evaluate(model.conv1, x), raw)


def test_followers_work_alone():
    model = build().eval()
    x = torch.randn(2, 8, 5, 5)
    expected = evaluate(model.act1, evaluate(model.bn1, x.clone()))
    swap(model)
    assert torch.equal(evaluate(model.act1, evaluate(model.bn1, x.clone())), expected)


def test_a_replaced_child_is_used():
    model = build().eval()
    swap(model)
    evaluate(model, image())
    for parent, name in ((model, "bn1"), (model.block.rep, "2")):
        old = getattr(parent, name)
        replacement = nn.InstanceNorm2d(old.num_features).eval()
        setattr(parent, name, replacement)
    plain = copy.deepcopy(model)
    unswap(plain)
    assert_same_results(model, plain, image())


def test_sync_batch_norm_conversion_after_swap():
    model = build().eval()
    original = copy.deepcopy(model)
    swap(model)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    assert_same_results(converted, original, image())


def test_hooks_and_parametrizations_added_later():
    model = build().eval()
    swap(model)
    seen = []
    model.block.rep[1].pointwise.register_forward_hook(lambda module, args, result: seen.append(result.shape))
    model.act1.register_forward_hook(lambda module, args, result: seen.append(result.shape))
    nn.utils.parametrizations.orthogonal(model.block.rep[4].pointwise)
    nn.utils.parametrizations.orthogonal(model.conv3.pointwise)
    nn.utils.parametrizations.orthogonal(model.conv1)
    evaluate(model, image())
    assert len(seen) == 2
    assert [layer.ran for layer in explain(model).layers].count("original") == 4
    with pytest.raises(SwapError, match="became a ParametrizedFused"):
        unswap(model)


def test_jit_trace_records_the_original_modules():
    model = build().eval()
    x = image()
    original = evaluate(model, x)
    swap(model)
    traced = torch.jit.trace(model, x)
    assert "inception_kernels::" not in str(traced.inlined_graph)
    torch.testing.assert_close(evaluate(traced, x), original)


def test_fx_trace_sees_the_original_modules_or_says_what_to_do():
    model = build(Branches).eval()
    x = image()
    expected = evaluate(model, x)
    swap(model)
    assert torch.equal(evaluate(torch.fx.symbolic_trace(model), x), expected)
    model = build().eval()
    swap(model)
    with pytest.raises(TypeError, match=r"unswap\(model\), trace, then swap the result"):
        torch.fx.symbolic_trace(model)


def test_a_traced_model_can_be_swapped():
    model = torch.fx.symbolic_trace(build().eval())
    original = copy.deepcopy(model)
    assert len(swap(model).swapped) == 6
    assert_same_results(model, original, image())


def test_a_sequential_that_grows_runs_what_it_holds():
    model = conv_bn(nn.Conv2d(3, 4, 3)).eval()
    swap(model)
    x = image()
    expected = evaluate(model, x)
    model.append(nn.Softplus())
    torch.testing.assert_close(evaluate(model, x), nn.functional.softplus(expected))


def test_vmap_and_forward_mode_run_the_original_modules():
    model = conv_bn(nn.Conv2d(3, 4, 3)).eval()
    original = copy.deepcopy(model)
    swap(model)
    x = torch.randn(3, 2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(model)(x), torch.vmap(original)(x))
    primal, tangent = x[0], torch.ones_like(x[0])
    result, reference = (torch.func.jvp(m, (primal,), (tangent,)) for m in (model, original))
    torch.testing.assert_close(result, reference)


def test_wrong_inputs_raise_what_the_model_raised():
    model = conv_bn(nn.Conv2d(3, 4, 3)).eval()
    swap(model)
    for x in (torch.zeros(2, 3, 9, 9, dtype=torch.float64), torch.zeros(2, 5, 9, 9), torch.zeros(2, 3, 2, 2)):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            evaluate(model, x)
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        model(image(), image())


def test_autocast():
    model = build().eval()
    original = copy.deepcopy(model)
    swap(model)
    x = image()
    with torch.autocast("cpu", torch.bfloat16):
        actual, plain = evaluate(model, x), evaluate(original, x)
    assert actual.dtype == plain.dtype == torch.bfloat16
    exact = evaluate(original.double(), x.double())
    assert_as_accurate(actual, plain, exact)


@pytest.mark.parametrize(
    ("weights", "dtype", "other"),
    [
        (torch.float32, torch.bfloat16, torch.float16),
        (torch.float32, torch.float16, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),  # PyTorch's batch norm takes no other there
    ],
)
@pytest.mark.parametrize("kind", [Branches, Residual])
def test_evaluation_under_autocast_prepares_layers(kind, weights, dtype, other):
    """Again where autocast comes, goes or asks for another dtype, and where a weight changes."""
    model = build(kind).eval().to(weights)
    plain = copy.deepcopy(model)
    swap(model)
    x = image()
    prepared = "prepared" if backends.available()["cpu"] is None else "operator"
    for precision in (dtype, dtype, None, other, dtype, "changed"):
        if precision == "changed":
            precision = dtype
            with torch.no_grad():
                for parameter in (*model.parameters(), *plain.parameters()):
                    parameter *= 0.75
        own = x if precision else x.to(weights)
        with torch.autocast("cpu", precision or dtype, enabled=precision is not None):
            actual, theirs = evaluate(model, own), evaluate(plain, own)
        assert actual.dtype == theirs.dtype
        assert_as_accurate(actual, theirs, evaluate(copy.deepcopy(plain).double(), x.double()))
        assert {layer.ran for layer in explain(model).layers} == {prepared}


def test_float64_among_float32_weights_is_refused_under_autocast_too():
    model = conv_bn(nn.Conv2d(3, 4, 3)).eval()
    swap(model)
    with torch.autocast("cpu", torch.bfloat16):
        evaluate(model, image())
        with pytest.raises(TypeError, match="weight: expected"):
            evaluate(model, image().double())
        with torch.autocast("cpu", enabled=False):
            evaluate(model, image())
        with pytest.raises(TypeError, match="weight: expected"):
            evaluate(model, image().double())


@pytest.mark.parametrize("kind", [Branches, Residual])
def test_torch_compile_keeps_the_fused_operators(kind):
    model = build(kind).eval()
    x = image().contiguous(memory_format=torch.channels_last)
    expected = evaluate(model, x)
    swap(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    backends.reset_counters()
    torch.testing.assert_close(evaluate(compiled, x), expected, rtol=1e-4, atol=1e-5)
    assert sum(fused_calls().values()) == len(plan(model).swapped)


class Interrupted(nn.Module):
    """Layers that Dynamo compiles one by one, because it cannot compile the forward that calls them."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers
        for i in range(layers):
            setattr(self, f"conv{i}", nn.Conv2d(8 if i else 3, 8, 3, padding=1, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(self.layers):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)).relu()
            torch._dynamo.graph_break()
        return x


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layers", [12, 2], ids=["past the recompile limit", "one module of a group alone"])
def test_modules_of_a_group_that_are_compiled_one_by_one(layers, training):
    x = torch.randn(2, 3, 9, 9)
    torch._dynamo.reset()
    model = randomize_batch_norm(Interrupted(layers), example_input=x).train(training)
    original = copy.deepcopy(model)
    assert len(swap(model).swapped) == layers
    if layers == 2:
        model.conv0.compile(backend="eager")
        compiled = model
    else:
        compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), original(x), rtol=1e-4, atol=1e-4)
    for (name, buffer), other in zip(model.named_buffers(), original.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-4, atol=1e-4, msg=name)
    torch._dynamo.reset()


def test_compiled_training_matches():
    torch._dynamo.reset()
    model = build(Branches).train()
    plain = copy.deepcopy(model)
    swap(model)
    x = image().contiguous(memory_format=torch.channels_last)
    torch.compile(model, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    plain(x).square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)
    for (name, buffer), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-4, atol=1e-5, msg=name)


def test_separable_alone_and_one_block():
    for model in (Separable(4, 6), BasicConv2d(4, 6)):
        model = randomize_batch_norm(model).eval()
        original = copy.deepcopy(model)
        assert len(swap(model).swapped) == 1
        assert_same_results(model, original, torch.randn(2, 4, 9, 9))
