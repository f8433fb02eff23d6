"""Bad input never reaches a kernel: an exception says what was expected and what came, and nothing has changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from operator_cases import MAKERS, Case, is_statistic, run

from inception_kernels import backends

OPERATORS = tuple(MAKERS)
BACKENDS = ("reference", "cpu", None)  # None: automatic choice


def nan(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.full(shape, 0.5, dtype=dtype, device=device)


FIRST_WEIGHT = {"conv2d_bn_act": "weight", "separable_conv2d": "depthwise_weight", "asymmetric_pair": "weight1"}
LAST_WEIGHT = {"conv2d_bn_act": "weight", "separable_conv2d": "pointwise_weight", "asymmetric_pair": "weight2"}


def first_weight(case: Case) -> str:
    return FIRST_WEIGHT[case.operator]


def last_weight(case: Case) -> str:
    return LAST_WEIGHT[case.operator]


def last(case: Case, name: str) -> str:
    """The name of a batch-norm vector or bias of the last convolution."""
    return name + ("2" if case.operator == "asymmetric_pair" else "")


def geometry(case: Case, name: str) -> str:
    return name + ("1" if case.operator == "asymmetric_pair" else "")


def sparse(t: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return t.to_sparse()


def quantized(t: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)


def expanded(*shape: int) -> torch.Tensor:
    return torch.zeros((1,) * len(shape)).expand(shape)


TYPE, VALUE, EITHER = TypeError, ValueError, (TypeError, ValueError)

# What is wrong -> (the case made wrong, the exception, what the message must name)
BAD: dict[str, tuple[Callable[[Case], Case], type[Exception] | tuple[type[Exception], ...], tuple[str, ...]]] = {
    "x_rank_3": (lambda c: c.but(x=c.tensors["x"][0]), VALUE, ("x", "[5, 7, 9]")),
    "x_rank_5": (lambda c: c.but(x=c.tensors["x"][None]), VALUE, ("x", "[1, 2, 5, 7, 9]")),
    "weight_rank_3": (lambda c: c.but(**{first_weight(c): c.tensors[first_weight(c)][0]}), VALUE, ("weight",)),
    "last_weight_rank_2": (lambda c: c.but(**{last_weight(c): c.tensors[last_weight(c)][:, :, 0, 0]}), VALUE, ("weight",)),
    "x_other_channels": (lambda c: c.but(x=nan(2, 4, 7, 9)), VALUE, ("4", "5")),
    "last_weight_other_channels": (
        lambda c: c.but(**{last_weight(c): nan(6, 11, *c.tensors[last_weight(c)].shape[2:])}), VALUE, ("11",)),
    "weight_no_outputs": (lambda c: c.but(**{last_weight(c): c.tensors[last_weight(c)][:0]}), VALUE, ("0",)),
    "weight_empty_window": (
        lambda c: c.but(**{first_weight(c): c.tensors[first_weight(c)][..., :0]}), VALUE, ("0",)),
    "x_no_channels": (lambda c: c.but(x=nan(2, 0, 7, 9)), VALUE, ("[2, 0, 7, 9]",)),
    "x_no_height": (lambda c: c.but(x=nan(2, 5, 0, 9)), VALUE, ("[2, 5, 0, 9]",)),
    "x_no_width": (lambda c: c.but(x=nan(2, 5, 7, 0)), VALUE, ("[2, 5, 7, 0]",)),
    "empty_batch_other_channels": (lambda c: c.but(x=nan(0, 4, 7, 9)), VALUE, ("4", "5")),
    "x_half_of_the_dtypes": (lambda c: c.but(x=c.tensors["x"].bfloat16()), TYPE, ("bfloat16", "float32")),
    "weight_other_dtype": (
        lambda c: c.but(**{last_weight(c): c.tensors[last_weight(c)].double()}), TYPE, ("float64", "float32")),
    "bias_integer": (lambda c: c.but(**{last(c, "bias"): torch.zeros(6, dtype=torch.int64)}), TYPE, ("int64",)),
    "x_integer": (lambda c: c.but(x=c.tensors["x"].long()), TYPE, ("int64",)),
    "x_complex": (lambda c: c.but(x=c.tensors["x"].to(torch.complex64)), TYPE, ("complex64",)),
    "x_bool": (lambda c: c.but(x=c.tensors["x"] > 0), TYPE, ("bool",)),
    "all_float8": (lambda c: c.cast(torch.float8_e4m3fn), TYPE, ("float8",)),
    "x_sparse": (lambda c: c.but(x=sparse(c.tensors["x"])), TYPE, ("sparse",)),
    "weight_sparse": (lambda c: c.but(**{last_weight(c): sparse(c.tensors[last_weight(c)])}), EITHER, ("sparse",)),
    "x_quantized": (lambda c: c.but(x=quantized(c.tensors["x"])), TYPE, ("quant",)),
    "x_on_meta": (lambda c: c.but(x=c.tensors["x"].to("meta")), VALUE, ("meta", "cpu")),
    "weight_on_meta": (lambda c: c.but(**{last_weight(c): c.tensors[last_weight(c)].to("meta")}), VALUE, ("meta", "cpu")),
    "bn_on_meta": (
        lambda c: c.but(**{last(c, "running_var"): c.tensors[last(c, "running_var")].to("meta")}), VALUE, ("meta", "cpu")),
    "x_list": (lambda c: Case(c.operator, c.tensors | {"x": [[1.0]]}, c.options), TYPE, ("x", "list")),
    "weight_none": (lambda c: Case(c.operator, c.tensors | {last_weight(c): None}, c.options), TYPE, ("weight", "None")),
    "bn_weight_float": (
        lambda c: Case(c.operator, c.tensors | {last(c, "bn_weight"): 1.0}, c.options), TYPE, ("bn_weight", "float")),
    "bn_other_length": (lambda c: c.but(**{last(c, "bn_weight"): nan(7)}), VALUE, ("[7]", "6")),
    "bn_rank_2": (lambda c: c.but(**{last(c, "running_mean"): nan(6, 1)}), VALUE, ("[6, 1]",)),
    "bn_complex": (
        lambda c: c.but(**{last(c, "bn_bias"): torch.zeros(6, dtype=torch.complex64)}), TYPE, ("complex64",)),
    "bias_other_length": (lambda c: c.but(**{last(c, "bias"): nan(5)}), VALUE, ("[5]", "6")),
    "mean_without_variance": (lambda c: c.but(**{last(c, "running_var"): None}), VALUE, ("running_var",)),
    "variance_without_mean": (lambda c: c.but(**{last(c, "running_mean"): None}), VALUE, ("running_mean",)),
    "running_mean_wants_a_gradient": (
        lambda c: c.but(**{last(c, "running_mean"): nan(6).requires_grad_()}), VALUE, ("running_mean", "gradient")),
    "running_var_wants_a_gradient": (
        lambda c: c.but(**{last(c, "running_var"): nan(6).requires_grad_()}), VALUE, ("running_var", "gradient")),
    "window_over_padded_input": (lambda c: c.but(x=nan(2, 5, 2, 2), **{
        geometry(c, "padding"): 0, **({"padding2": 0} if c.operator == "asymmetric_pair" else {})}), VALUE, ("window",)),
    "padding_negative": (lambda c: c.but(**{geometry(c, "padding"): -1}), VALUE, ("padding", "-1")),
    "padding_triple": (lambda c: c.but(**{geometry(c, "padding"): (1, 1, 1)}), EITHER, ("padding",)),
    "padding_float": (lambda c: c.but(**{geometry(c, "padding"): 0.5}), EITHER, ("padding", "0.5")),
    "padding_bool": (lambda c: c.but(**{geometry(c, "padding"): True}), TYPE, ("padding", "True")),
    "padding_name": (lambda c: c.but(**{geometry(c, "padding"): "same"}), EITHER, ("padding", "same")),
    "activation_unknown": (lambda c: c.but(activation="gelu"), VALUE, ("activation", "gelu", "relu6")),
    "activation_callable": (lambda c: c.but(activation=torch.relu), EITHER, ("activation",)),
    "activation_list": (lambda c: c.but(activation=["relu"]), EITHER, ("activation",)),
    "training_integer": (lambda c: c.but(training=1), TYPE, ("training", "1")),
    "training_string": (lambda c: c.but(training="yes"), TYPE, ("training", "yes")),
    "momentum_none": (lambda c: Case(c.operator, c.tensors, c.options | {"momentum": None}), TYPE, ("momentum",)),
    "momentum_string": (lambda c: c.but(momentum="0.1"), TYPE, ("momentum", "0.1")),
    "eps_string": (lambda c: c.but(eps="small"), TYPE, ("eps", "small")),
    "eps_bool": (lambda c: c.but(eps=True), TYPE, ("eps", "True")),
    "eps_negative": (lambda c: c.but(eps=-1e-3), VALUE, ("eps", "-0.001")),
}  # fmt: skip

ONLY = {
    "stride_zero": (lambda c: c.but(stride=0), VALUE, ("stride", "0")),
    "stride_negative": (lambda c: c.but(stride=(1, -2)), VALUE, ("stride", "-2")),
    "stride_bool": (lambda c: c.but(stride=True), TYPE, ("stride", "True")),
    "stride_float": (lambda c: c.but(stride=(1.0, 1.0)), EITHER, ("stride", "1.0")),
    "dilation_zero": (lambda c: c.but(dilation=0), VALUE, ("dilation", "0")),
    "dilation_negative": (lambda c: c.but(dilation=(-1, 1)), VALUE, ("dilation", "-1")),
    "dilated_window_over_padded_input": (lambda c: c.but(dilation=4), VALUE, ("window", "9", "7")),
    "residual_other_shape": (lambda c: c.but(residual=nan(2, 6, 5, 6)), VALUE, ("residual", "[2, 6, 5, 6]", "[2, 6, 5, 7]")),
    "residual_that_would_broadcast": (lambda c: c.but(residual=nan(1, 6, 5, 7)), VALUE, ("residual", "[1, 6, 5, 7]")),
    "residual_rank_3": (lambda c: c.but(residual=nan(6, 5, 7)), VALUE, ("residual",)),
    "residual_other_dtype": (lambda c: c.but(residual=nan(2, 6, 5, 7, dtype=torch.float64)), TYPE, ("residual", "float64")),
    "residual_on_meta": (lambda c: c.but(residual=nan(2, 6, 5, 7, device="meta")), VALUE, ("residual", "meta")),
    "residual_number": (
        lambda c: Case(c.operator, c.tensors | {"residual": 1.0}, c.options), TYPE, ("residual", "float")),
}  # fmt: skip
SEPARABLE = {
    "depthwise_multiplier": (lambda c: c.but(depthwise_weight=nan(10, 1, 3, 3)), VALUE, ("depthwise_weight", "10", "5")),
    "depthwise_not_depthwise": (lambda c: c.but(depthwise_weight=nan(5, 5, 3, 3)), VALUE, ("depthwise_weight",)),
    "pointwise_with_a_window": (lambda c: c.but(pointwise_weight=nan(6, 5, 3, 3)), VALUE, ("pointwise_weight", "[6, 5, 3, 3]")),
    "depthwise_bias_length": (lambda c: c.but(depthwise_bias=nan(6)), VALUE, ("depthwise_bias", "[6]", "5")),
    "input_activation": (lambda c: c.but(input_activation="tanh"), VALUE, ("input_activation", "tanh")),
    "mid_activation": (lambda c: c.but(mid_activation="tanh"), VALUE, ("mid_activation", "tanh")),
}  # fmt: skip
PAIR = {
    "mid_activation": (lambda c: c.but(mid_activation="tanh"), VALUE, ("mid_activation", "tanh")),
    "second_window_over_padded_input": (lambda c: c.but(weight2=nan(6, 8, 19, 1)), VALUE, ("window", "19")),
    "first_bn_length": (lambda c: c.but(bn_bias1=nan(6)), VALUE, ("[6]", "8")),
    "first_half_given": (lambda c: c.but(running_mean1=None), VALUE, ("running_mean", "1")),
}
ALL = (
    [(op, name, spec) for op in OPERATORS for name, spec in BAD.items()]
    + [(op, name, spec) for op in OPERATORS[:2] for name, spec in ONLY.items()]
    + [("separable_conv2d", name, spec) for name, spec in SEPARABLE.items()]
    + [("asymmetric_pair", name, spec) for name, spec in PAIR.items()]
)


def assert_refused(case: Case, backend: str | None, exception, names: tuple[str, ...] = ()) -> str:
    before = {n: t.clone() for n, t in case.tensors.items() if is_statistic(n) and isinstance(t, torch.Tensor)}
    backends.reset_counters()
    with pytest.raises(exception) as error:
        run(case, backend)
    message = str(error.value)
    assert "expected" in message and "got" in message, f"does not say what was expected and what came: {message}"
    for name in names:
        assert name in message, f"{name!r} is not named in: {message}"
    for name, t in before.items():
        if not t.is_meta:
            assert torch.equal(case.tensors[name], t), f"{name} changed"
    ran = {n for n, c in backends.counters().items() if c and ".cpu" in n}
    assert not ran, f"{ran} ran before the exception"
    return message


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize(("operator", "name", "spec"), ALL, ids=[f"{op}-{name}" for op, name, _ in ALL])
def test_bad_argument(operator, name, spec, backend, training):
    wrong, exception, named = spec
    good = MAKERS[operator](training=training)
    assert_refused(wrong(good), backend, exception, named)


# ---- training with one value per channel, and state on errors


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_training_with_one_value_per_channel(operator, backend):
    sizes = dict(N=1, H=1, W=1, training=True)
    case = MAKERS[operator](**sizes) if operator == "asymmetric_pair" else MAKERS[operator](**sizes, padding=1)
    message = assert_refused(case, backend, ValueError)
    assert "value" in message and "channel" in message
    run(case.but(training=False), backend)


def test_training_with_one_value_per_channel_in_the_second_convolution_only():
    """The first batch norm must not be updated either when the second cannot have statistics."""
    case = MAKERS["asymmetric_pair"](N=1, H=3, W=1, windows=((1, 1), (3, 1)), padding1=0, padding2=0, training=True)
    for backend in BACKENDS:
        assert_refused(case, backend, ValueError)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_good_call_after_a_refused_one(operator):
    case = MAKERS[operator]()
    expected = run(case, "cpu")
    assert_refused(case.but(activation="gelu"), "cpu", ValueError)
    assert torch.equal(run(case, "cpu"), expected)


# ---- aliasing


ALIASES: dict[str, Callable[[Case], Case]] = {
    "mean_is_variance": lambda c: c.but(**{last(c, "running_mean"): c.tensors[last(c, "running_var")]}),
    "mean_is_a_view_of_variance": lambda c: c.but(**{last(c, "running_mean"): c.tensors[last(c, "running_var")][:]}),
    "mean_is_bn_weight": lambda c: c.but(**{last(c, "running_mean"): c.tensors[last(c, "bn_weight")]}),
    "variance_is_bn_bias": lambda c: c.but(**{last(c, "running_var"): c.tensors[last(c, "bn_bias")]}),
    "mean_is_bias": lambda c: c.but(**{last(c, "bias"): c.tensors[last(c, "running_mean")]}),
    "mean_is_the_start_of_x": lambda c: c.but(**{last(c, "running_mean"): c.tensors["x"].view(-1)[:6]}),
    "mean_is_inside_x": lambda c: c.but(**{last(c, "running_mean"): c.tensors["x"].view(-1)[10:16]}),
    "mean_is_inside_the_weight": lambda c: c.but(**{last(c, "running_mean"): c.tensors[last_weight(c)].view(-1)[3:9]}),
    "expanded_mean": lambda c: c.but(**{last(c, "running_mean"): torch.zeros(1).expand(6)}),
}


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_running_statistics_that_alias_are_refused_in_training(operator, alias, backend):
    """They are written while the others are read: the result would depend on the order."""
    case = ALIASES[alias](MAKERS[operator](training=True))
    assert_refused(case, backend, ValueError, ("running_",))
    run(case.but(training=False), backend)  # only read in evaluation


@pytest.mark.parametrize("operator", OPERATORS)
def test_overlapping_running_statistics_are_refused_in_training(operator):
    case = MAKERS[operator](training=True)
    memory = torch.rand(7) + 0.5
    case = case.but(**{last(case, "running_mean"): memory[:6], last(case, "running_var"): memory[1:]})
    assert_refused(case, "cpu", ValueError, ("running_",))


@pytest.mark.parametrize("operator", OPERATORS)
def test_neighbouring_running_statistics_work(operator):
    """Parts of one buffer that do not overlap are fine: some optimizers and checkpoints flatten state."""
    case = MAKERS[operator](training=True)
    separate = {n: t.clone() for n, t in case.tensors.items()}
    expected = run(case.but(**separate), "cpu")
    mean, var = last(case, "running_mean"), last(case, "running_var")
    memory = torch.cat([case.tensors[mean], case.tensors[var]])
    y = run(case.but(**{mean: memory[:6], var: memory[6:]}), "cpu")
    assert torch.equal(y, expected)
    assert torch.equal(memory, torch.cat([separate[mean], separate[var]]))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("operator", ["conv2d_bn_act", "separable_conv2d"])
def test_inputs_that_are_only_read_may_alias(operator, training):
    """x as its own residual, and one tensor as BN weight and bias."""
    case = MAKERS[operator](C=6, K=6, padding=1, training=training)
    if operator == "conv2d_bn_act":
        case = MAKERS[operator](C=6, K=6, window=(3, 3), padding=1, training=training)
    separate = case.but(residual=case.tensors["x"].clone(), bn_bias=case.tensors["bn_weight"].clone())
    shared = case.but(residual=case.tensors["x"], bn_bias=case.tensors["bn_weight"])
    copies = {n: t.clone() for n, t in case.tensors.items() if is_statistic(n)}
    assert torch.equal(run(shared, "cpu"), run(separate.but(**copies), "cpu"))


# ---- more than 2^31 elements, without the memory for them


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("device", ["expanded", "meta"])
def test_more_than_2_to_the_31_elements_works_or_says_it_does_not(operator, device):
    """2^20 images of 32 x 128 that share one image's memory: no pointer may wrap around."""
    case = MAKERS[operator](N=1, C=1, H=32, W=128, K=1) if operator != "asymmetric_pair" else MAKERS[operator](
        N=1, C=1, H=32, W=128, M=1, K=1
    )  # fmt: skip
    if device == "meta":
        case = case.cast(torch.float32)
        tensors = {n: t.to("meta") for n, t in case.tensors.items()}
        tensors["x"] = torch.empty(2**20, 1, 32, 128, device="meta")
        y = run(Case(operator, tensors, case.options))
        assert y.shape[0] == 2**20 and y.is_meta
        return
    # windows or strides as large as the image leave one output pixel per image: the input is large, the output is not
    if operator == "asymmetric_pair":
        small = MAKERS[operator](
            N=1, C=1, H=32, W=128, M=1, K=1, windows=((1, 128), (32, 1)), padding1=0, padding2=0, activation="none"
        )
    else:
        small = case.but(stride=(32, 128))
    big = small.but(x=small.tensors["x"].expand(2**20, 1, 32, 128))
    y = run(big, "cpu")
    assert torch.equal(y, run(small, "cpu").expand(y.shape))


def test_an_output_that_cannot_be_allocated_is_an_error_not_a_crash():
    x, weight = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    with pytest.raises((RuntimeError, ValueError, MemoryError)):
        run(Case("conv2d_bn_act", {"x": x, "weight": weight}, {"padding": 2**30}), "cpu")


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_integers_beyond_64_bits_are_refused(name):
    case = MAKERS["conv2d_bn_act"]().but(**{name: 2**70})
    with pytest.raises((ValueError, TypeError, OverflowError, RuntimeError)):
        run(case, "cpu")
