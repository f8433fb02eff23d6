"""Multiply-adds and bytes against hand counts, and the papers' arithmetic against the papers' numbers."""

import argparse
import json
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from helpers import needs_kernels
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import inception_kernels as ik
from inception_kernels import flops, models
from inception_kernels.flops.formulas import FORMULAS
from inception_kernels.ops.prepared import PreparedConv2dBNAct, PreparedSeparableConv2d
from inception_kernels.swap import swapped


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


# Formulas -------------------------------------------------------------------------------------------------------------


def brute_force_macs(x, weight, stride, padding, dilation) -> int:
    """Count window positions by running a one-channel convolution over ones, padding included."""
    n, _, h, w = x
    k, c_per_group, r, s = weight
    padded = torch.ones(1, 1, h + 2 * padding[0], w + 2 * padding[1])
    taps = F.conv2d(padded, torch.ones(1, 1, r, s), stride=stride, dilation=dilation)
    return n * k * c_per_group * int(taps.sum().item())


@pytest.mark.parametrize(
    ("x", "weight", "stride", "padding", "dilation"),
    [
        ((2, 5, 7, 11), (3, 5, 3, 3), (1, 1), (0, 0), (1, 1)),
        ((1, 4, 17, 17), (6, 4, 1, 7), (1, 1), (0, 3), (1, 1)),
        ((3, 4, 9, 8), (8, 4, 3, 2), (2, 3), (1, 0), (1, 2)),
        ((2, 6, 9, 9), (6, 1, 3, 3), (2, 2), (1, 1), (1, 1)),
        ((0, 4, 9, 9), (8, 4, 1, 1), (1, 1), (0, 0), (1, 1)),
    ],
    ids=["square", "1x7", "strided-dilated", "depthwise", "empty"],
)
def test_conv2d_macs(x, weight, stride, padding, dilation):
    expected = brute_force_macs(x, weight, stride, padding, dilation)
    assert flops.conv2d_macs(x, weight, stride, padding, dilation) == expected
    groups = x[1] // weight[1]
    meta = [torch.empty(shape, device="meta") for shape in (x, weight)]
    assert counted(lambda: F.conv2d(*meta, None, stride, padding, dilation, groups)) == 2 * expected
    assert flops.conv2d_backward_macs(x, weight, stride, padding, dilation) == 2 * expected
    assert flops.conv2d_backward_macs(x, weight, stride, padding, dilation, grad_x=False) == expected


def test_separable_macs_by_hand():
    x, depthwise, pointwise = (2, 728, 19, 19), (728, 1, 3, 3), (728, 728, 1, 1)
    pixels = 2 * 19 * 19
    assert flops.separable_conv2d_macs(x, depthwise, pointwise, padding=1) == pixels * (728 * 9 + 728 * 728)
    assert flops.separable_conv2d_macs(x, depthwise, pointwise, 2, 1) == 2 * 10 * 10 * (728 * 9 + 728 * 728)

    def backward(**grads: bool) -> int:
        chosen = {"grad_x": False, "grad_depthwise_weight": False, "grad_pointwise_weight": False, **grads}
        return flops.separable_conv2d_backward_macs(x, depthwise, pointwise, padding=1, **chosen) // pixels

    assert backward() == 0
    assert backward(grad_pointwise_weight=True) == 728 * 728
    assert backward(grad_depthwise_bias=True) == 728 * 728
    assert backward(grad_depthwise_weight=True) == backward(grad_x=True) == 728 * 728 + 728 * 9
    assert backward(grad_x=True, grad_depthwise_weight=True) == 728 * 728 + 2 * 728 * 9
    everything = flops.separable_conv2d_backward_macs(x, depthwise, pointwise, padding=1)
    assert everything == 2 * flops.separable_conv2d_macs(x, depthwise, pointwise, padding=1)


def test_asymmetric_pair_macs_by_hand():
    x, first, second = (1, 160, 17, 17), (128, 160, 1, 7), (192, 128, 7, 1)
    pads = {"padding1": (0, 3), "padding2": (3, 0)}
    expected = 17 * 17 * (7 * 160 * 128 + 7 * 128 * 192)
    assert flops.asymmetric_pair_macs(x, first, second, **pads) == expected
    assert flops.asymmetric_pair_backward_macs(x, first, second, **pads) == 2 * expected
    without_x = flops.asymmetric_pair_backward_macs(x, first, second, **pads, grad_x=False)
    assert without_x == 2 * expected - 17 * 17 * 7 * 160 * 128
    # Without padding the first convolution is 17x11 and the second 11x11.
    assert flops.asymmetric_pair_macs(x, first, second) == 17 * 11 * 7 * 160 * 128 + 11 * 11 * 7 * 128 * 192


def test_window_larger_than_the_input():
    with pytest.raises(ValueError, match=r"got 7 taps with dilation 1 over 4 \+ 2 x 1"):
        flops.conv2d_macs((1, 3, 4, 4), (8, 3, 7, 7), padding=1)


def test_pytorch_counts_depthwise_weight_gradients_too_high():
    """Why ours has its own formulas: torch's backward formula ignores groups. Here C = 64: 64 times too high."""
    x = torch.empty(1, 64, 16, 16, device="meta", requires_grad=True)
    weight = torch.empty(64, 1, 3, 3, device="meta", requires_grad=True)
    forward = 2 * flops.conv2d_macs(x.shape, weight.shape, padding=1)
    y = F.conv2d(x, weight, padding=1, groups=64)
    theirs = counted(lambda: y.sum().backward())
    exact = 2 * forward  # one convolution for x, one for the weight
    assert theirs > exact, "torch counts this right now: correct the documentation"
    assert (theirs - forward, theirs / exact) == (64 * forward, 32.5)


# Registration with torch.utils.flop_counter ---------------------------------------------------------------------------


@needs_kernels
def test_every_operator_that_computes_has_a_formula():
    for name, formula in FORMULAS.items():
        packet = getattr(torch.ops.inception_kernels, name)
        assert packet in flop_registry
        names = [argument.name for argument in packet.default._schema.arguments]
        code = formula.__code__
        assert code.co_argcount <= len(names)
        for mine in set(code.co_varnames[: code.co_argcount]) & {"stride", "padding", "dilation", "output_mask", "x"}:
            assert code.co_varnames.index(mine) == names.index(mine), f"{name}: {mine}"
    computing = {
        schema.name.rpartition("::")[2]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("inception_kernels::") and not schema.name.startswith("inception_kernels::_")
    }
    no_products = {
        "label_smoothing_cross_entropy",
        "label_smoothing_cross_entropy_backward",
        "avg_pool2d",
        "batch_norm",
        "max_pool2d",
        "max_pool2d_backward",
        "max_pool2d_training",
        "update_running_statistics",
    }
    assert {name for name in computing if not name.endswith("_pack")} - no_products == set(FORMULAS)


@needs_kernels
@pytest.mark.parametrize(
    "imports",
    [
        "import torch.utils.flop_counter, inception_kernels",
        "import inception_kernels, torch.utils.flop_counter",
        "import importlib.util, inception_kernels\n"
        "importlib.util.find_spec('torch.utils.flop_counter')\n"
        "import torch.utils.flop_counter",
    ],
    ids=["before", "after", "asked_for_and_after"],
)
def test_formulas_are_there_whenever_the_counter_is_imported(imports: str) -> None:
    program = f"{imports}\nimport torch\nprint(set(torch.utils.flop_counter.flop_registry))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    for name in FORMULAS:
        assert f"inception_kernels.{name}'" in result.stdout


def test_importing_the_package_imports_no_triton() -> None:
    """It takes time, and nothing of it is needed before the backend is used."""
    program = "import sys, inception_kernels; print([name for name in sys.modules if name.split('.')[0] == 'triton'])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "[]"


def batch_norm(channels: int) -> list[torch.Tensor]:
    return [torch.ones(channels), torch.zeros(channels), torch.zeros(channels), torch.ones(channels)]


@needs_kernels
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_conv2d_bn_act_counts(training):
    x, weight = torch.randn(2, 8, 9, 9, requires_grad=True), torch.randn(16, 8, 1, 7, requires_grad=True)
    macs = 2 * 9 * 9 * 16 * 8 * 7
    out = []

    def forward():
        out.append(ik.conv2d_bn_act(x, weight, *batch_norm(16), padding=(0, 3), training=training))

    assert counted(forward) == 2 * macs
    assert counted(lambda: out[0].sum().backward()) == 4 * macs
    x.requires_grad_(False)
    forward()
    assert counted(lambda: out[-1].sum().backward()) == 2 * macs


@needs_kernels
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_separable_conv2d_counts(training):
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    depthwise, pointwise = (torch.randn(shape, requires_grad=True) for shape in ((8, 1, 3, 3), (16, 8, 1, 1)))
    macs = 2 * 9 * 9 * (8 * 9 + 16 * 8)
    out = []

    def forward():
        out.append(ik.separable_conv2d(x, depthwise, pointwise, *batch_norm(16), padding=1, training=training))

    assert counted(forward) == 2 * macs
    assert counted(lambda: out[0].sum().backward()) == 4 * macs


@needs_kernels
def test_asymmetric_pair_counts():
    x, first, second = torch.randn(1, 8, 17, 17), torch.randn(12, 8, 1, 7), torch.randn(16, 12, 7, 1)
    macs = 17 * 17 * 7 * (8 * 12 + 12 * 16)
    norms = {"bn1": batch_norm(12), "bn2": batch_norm(16), "padding1": (0, 3), "padding2": (3, 0)}
    with torch.no_grad():
        assert counted(lambda: ik.asymmetric_pair(x, first, second, **norms)) == 2 * macs


# Reports --------------------------------------------------------------------------------------------------------------


def small_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )


def test_report_by_hand():
    model = small_model().train()
    report = flops.count(model, torch.randn(2, 3, 6, 6))
    assert all(module.training for module in model.modules()), "the mode was not restored"
    assert model[1].num_batches_tracked == 0
    rows = {row.path: row for row in report.rows}
    assert [row.path for row in report.rows] == ["0", "1", "2", "4"]
    conv, norm, relu, linear = rows["0"], rows["1"], rows["2"], rows["4"]
    image, features = 2 * 3 * 36, 2 * 8 * 36
    assert (conv.macs, conv.params, conv.bytes) == (2 * 36 * 8 * 27, 216, 4 * (image + 216 + features))
    assert conv.intensity == 2 * conv.macs / conv.bytes
    assert (norm.macs, norm.params, norm.bytes) == (0, 16, 4 * (2 * features + 4 * 8))
    assert (relu.macs, relu.params, relu.bytes) == (0, 0, 4 * 2 * features)
    assert (linear.macs, linear.params) == (2 * 5 * 288, 5 * 288 + 5)
    assert linear.bytes == 4 * (features + 5 * 288 + 5 + 10)
    assert conv.shape == "2x3x6x6 -> 2x8x6x6"
    assert linear.shape == "2x288 -> 2x5"
    assert report.macs == conv.macs + linear.macs
    assert report.params == report.parameters == sum(p.numel() for p in model.parameters())
    assert report.bytes == sum(row.bytes for row in report.rows)
    halved = flops.count(model, torch.randn(2, 3, 6, 6), dtype=torch.bfloat16)
    assert (halved.macs, halved.bytes * 2, halved.dtype) == (report.macs, report.bytes, torch.bfloat16)
    assert json.loads(report.to_json())["total"]["macs"] == report.macs
    assert "2x3x6x6 -> 2x8x6x6" in str(report)


def test_expanded_input_is_stored_once():
    model = nn.Sequential(nn.ReLU())
    report = flops.count(model, torch.randn(1, 3, 4, 4).expand(10, 3, 4, 4))
    assert report.bytes == 4 * (3 * 16 + 10 * 3 * 16)


class Prepared(nn.Module):
    """A layer that runs from packed copies of its parameters, as a swapped one does in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.pointwise = nn.Conv2d(8, 16, 1, bias=False)
        self.conv = nn.Conv2d(16, 4, (1, 7), padding=(0, 3), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        separable = PreparedSeparableConv2d(self.depthwise.weight, self.pointwise.weight, *batch_norm(16), padding=1)
        return PreparedConv2dBNAct(self.conv.weight, *batch_norm(4), padding=(0, 3))(separable(x))


@needs_kernels
def test_prepacked_operators_by_hand():
    report = flops.count(Prepared(), torch.randn(2, 8, 9, 9), name="prepared")
    separable, conv = [row for row in report.rows if row.macs]
    pixels = 2 * 81
    assert separable.macs == pixels * (8 * 9 + 8 * 16)
    assert conv.macs == pixels * 7 * 16 * 4
    # Scale and shift of the folded batch norm are read; how the weights are padded in the packed buffer is not counted.
    assert separable.bytes == 4 * (pixels * (8 + 16) + 8 * 9 + 8 * 16 + 2 * 16)
    assert conv.bytes == 4 * (pixels * (16 + 4) + 7 * 16 * 4 + 2 * 4)
    folded = 2 * (16 + 4)  # the batch norms' vectors, which are no parameters of this module
    assert separable.params + conv.params == report.params == report.parameters + folded
    assert not any(row.operator.endswith("_pack") for row in report.rows)


@pytest.mark.parametrize(
    ("name", "macs", "parameters"),
    [("inception_v3", 5.71, 27_161_264), ("xception", 8.36, 22_855_952)],
)
def test_reference_models(name, macs, parameters):
    with torch.device("meta"):
        report = flops.count(models.load(name), torch.empty(1, 3, 299, 299))
    assert report.macs / 1e9 == pytest.approx(macs, abs=0.006)
    assert report.parameters == parameters
    assert report.params == (23_834_568 if name == "inception_v3" else parameters)


@needs_kernels
@pytest.mark.parametrize("name", ["inception_v3", "xception"])
def test_a_swapped_model_does_the_same_work_and_moves_less(name):
    torch.manual_seed(0)
    model, x = models.load(name), torch.randn(1, 3, 107, 107)
    plain = flops.count(model, x)
    with swapped(model):
        fused = flops.count(model, x)
    fused_layers = [row for row in fused.rows if row.operator.startswith("inception_kernels.")]
    pools = [row for row in fused_layers if row.operator.endswith("_pool2d")]
    assert (len(fused_layers) - len(pools), len(pools)) == {"inception_v3": (94, 13), "xception": (40, 4)}[name]
    assert all(row.path for row in fused_layers)
    assert not any(row.operator == "aten.convolution" for row in fused.rows)
    assert (fused.macs, fused.params, fused.parameters) == (plain.macs, plain.params, plain.parameters)
    assert fused.bytes < plain.bytes
    assert len(fused.rows) < len(plain.rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, torch.ones(1)), "model: expected a torch.nn.Module, got NoneType"),
        ((nn.ReLU(), (1, 3, 4, 4)), "example_input: expected a torch.Tensor, got tuple"),
        ((nn.ReLU(), torch.ones(1), torch.int8), "dtype: expected a floating-point type, got torch.int8"),
    ],
)
def test_count_says_what_is_wrong(arguments, message):
    with pytest.raises(TypeError, match=message):
        flops.count(*arguments)


# The papers' arithmetic -----------------------------------------------------------------------------------------------


def test_rethinking_inception():
    five = flops.stacked(5, 3)
    assert (five.gain, five.saved) == (Fraction(25, 18), Fraction(28, 100))  # section 3.1: 28 %
    assert flops.stacked(7, 3).cost_ratio == Fraction(27, 49)
    assert round(float(flops.stacked(3, 2).saved), 2) == 0.11  # section 3.2: 11 %
    assert round(float(flops.asymmetric(3).saved), 2) == 0.33  # section 3.2: 33 %
    assert {str(item) for item in flops.factorizations()} >= {"5x5 -> 3x3 + 3x3", "3x3 -> 1x3 + 3x1"}


@pytest.mark.parametrize("n", [2, 3, 5, 7, 11, 100])
def test_asymmetric_for_any_n(n):
    item = flops.asymmetric(n)
    assert item.cost_ratio == Fraction(2, n)
    channels, shape = 16, (1, 16, 128, 128)
    whole = flops.conv2d_macs(shape, (channels, channels, n, n))
    size = 128 - n + 1  # both leave the same output; padding keeps the intermediate at that height
    pair = 2 * size * size * n * channels * channels
    assert Fraction(pair, whole) == item.cost_ratio


@pytest.mark.parametrize(("channels", "window"), [(128, 3), (728, 3), (64, (1, 7))])
def test_separable_against_regular(channels, window):
    rows, columns = (window, window) if isinstance(window, int) else window
    x, padding = (1, 32, 19, 19), (rows // 2, columns // 2)
    separable = flops.separable_conv2d_macs(x, (32, 1, rows, columns), (channels, 32, 1, 1), padding=padding)
    regular = flops.conv2d_macs(x, (channels, 32, rows, columns), padding=padding)
    assert flops.separable_cost_ratio(channels, window) == Fraction(separable, regular)


def test_impossible_factorizations():
    with pytest.raises(ValueError, match="got n=6, part=3"):
        flops.stacked(6, 3)
    with pytest.raises(ValueError, match="n >= 2, got 1"):
        flops.asymmetric(1)
    with pytest.raises(ValueError, match=r"sees \(5, 5\), got 3 along axis 0"):
        flops.Factorization((5, 5), ((3, 3),), "none")
    with pytest.raises(ValueError, match="out_channels=0"):
        flops.separable_cost_ratio(0, 3)


# The command ----------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    flops.add_arguments(parser)
    return flops.run(parser.parse_args(arguments))


@needs_kernels
@pytest.mark.parametrize("name", ["inception_v3", "xception"])
def test_an_optimised_network_counts_as_the_network(name):
    model, x = models.load(name).eval(), torch.randn(2, 3, 107, 107)
    fast = ik.optimize(model, x)
    report = flops.count(fast, x)
    assert [row.operator for row in report.rows] == ["inception_kernels.run_program"]
    assert report.macs == flops.count(model, x).macs
    assert counted(lambda: fast(x)) == 2 * report.macs


def test_command(tmp_path, capsys):
    path = tmp_path / "report" / "flops.json"
    assert run("--model", "xception", "--batch", "2", "--dtype", "bfloat16", "--json", str(path)) == 0
    output = capsys.readouterr().out
    assert "xception: 16.71 GMAC, 33.43 GFLOP, 22.86 M parameters" in output
    assert "25/18" in output
    assert "block4.rep.1.pointwise" in output
    document = json.loads(path.read_text())
    (report,) = document["reports"]
    assert (report["input_shape"], report["dtype"]) == ([2, 3, 299, 299], "bfloat16")
    ratios = {item["factorization"]: item["cost_ratio"] for item in document["papers"]["factorizations"]}
    assert ratios["5x5 -> 3x3 + 3x3"] == "18/25"
    assert ratios["11x11 -> 1x11 + 11x1"] == "2/11"


@pytest.mark.third_party("torchvision")
def test_command_counts_torchvision(capsys):
    assert run("--model", "torchvision:inception_v3") == 0
    assert "5.71 GMAC, 11.43 GFLOP, 27.16 M parameters" in capsys.readouterr().out


def test_command_shows_every_operator(capsys):
    assert run("--model", "xception", "--image-size", "75", "--all") == 0
    assert "aten.max_pool2d_with_indices" in capsys.readouterr().out


def test_command_says_what_is_wrong(capsys):
    with pytest.raises(ValueError, match="got 'nothing'"):
        run("--model", "nothing")
    with pytest.raises(SystemExit):
        run("--batch", "0")
    assert "expected a positive number, got 0" in capsys.readouterr().err
