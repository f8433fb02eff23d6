"""Inputs of the three operators, their layouts, and one check of a whole call against float64 and against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from oracle import COMPOSITIONS, REVERSED, Sum, Trace, assert_as_accurate_as_torch, near_kink
from torch import Tensor

import inception_kernels as ik
from inception_kernels import backends

OPERATORS: dict[str, Callable[..., Tensor]] = {
    "conv2d_bn_act": ik.conv2d_bn_act,
    "separable_conv2d": ik.separable_conv2d,
    "asymmetric_pair": ik.asymmetric_pair,
}
DEFAULT_ACTIVATION = {"conv2d_bn_act": "relu", "separable_conv2d": "none", "asymmetric_pair": "relu"}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
BN_FIELDS = ("bn_weight", "bn_bias", "running_mean", "running_var")
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Case:
    """One call. Tensors of a pair's batch norms are named bn_weight1, ..., running_var2."""

    operator: str
    tensors: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> Case:
        """A copy with other tensors or options; None removes."""
        tensors, options = dict(self.tensors), dict(self.options)
        for name, value in changes.items():
            where = tensors if isinstance(value, Tensor) or name in tensors else options
            where.pop(name, None) if value is None else where.update({name: value})
        return replace(self, tensors=tensors, options=options)

    def to(self, device: str) -> Case:
        return replace(self, tensors={name: t.to(device) for name, t in self.tensors.items()})

    def cast(self, dtype: torch.dtype) -> Case:
        return replace(self, tensors={name: t.detach().to(dtype) for name, t in self.tensors.items()})


def call(function: Callable[..., Tensor], case: Case, **extra: Any) -> Tensor:
    arguments: dict[str, Any] = dict(case.tensors)
    if case.operator == "asymmetric_pair":
        for i in (1, 2):
            fields = [arguments.pop(f"{name}{i}", None) for name in BN_FIELDS]
            arguments[f"bn{i}"] = None if all(f is None for f in fields) else tuple(fields)
    return function(**arguments, **case.options, **extra)


def run(case: Case, backend: str | None = None, **extra: Any) -> Tensor:
    function = OPERATORS[case.operator]
    if backend is None:
        return call(function, case, **extra)
    with backends.use_backend(backend):
        return call(function, case, **extra)


# ---- making cases


def _random(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def batch_norm_tensors(generator: torch.Generator, K: int, dtype: torch.dtype, suffix: str = "") -> dict[str, Tensor]:
    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(K, generator=generator, dtype=torch.float64) * (high - low) + low).to(dtype)

    values = (uniform(0.5, 1.5), uniform(-0.5, 0.5), uniform(-0.3, 0.3), uniform(0.5, 1.5))
    return {name + suffix: value for name, value in zip(BN_FIELDS, values, strict=True)}


def pair_of(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def output_size(H: int, W: int, window, stride=1, padding=0, dilation=1) -> tuple[int, int]:
    sizes = zip((H, W), window, pair_of(stride), pair_of(padding), pair_of(dilation), strict=True)
    P, Q = ((n + 2 * p - d * (r - 1) - 1) // s + 1 for n, r, s, p, d in sizes)
    return P, Q


def conv_case(
    N=2, C=5, H=7, W=9, K=6, window=(3, 3), *, stride=1, padding=0, dilation=1, bn=True, bias=False, residual=False,
    dtype=torch.float32, bn_dtype=None, seed=0, **options,
) -> Case:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    P, Q = output_size(H, W, window, stride, padding, dilation)
    tensors = {
        "x": _random(g, N, C, H, W).to(dtype),
        "weight": _random(g, K, C, *window, scale=(C * window[0] * window[1]) ** -0.5).to(dtype),
    }
    if bn:
        tensors |= batch_norm_tensors(g, K, bn_dtype or dtype)
    if bias:
        tensors["bias"] = _random(g, K, scale=0.5).to(dtype)
    if residual:
        tensors["residual"] = _random(g, N, K, P, Q).to(dtype)
    return Case("conv2d_bn_act", tensors, {"stride": stride, "padding": padding, "dilation": dilation, **options})


def separable_case(
    N=2, C=5, H=7, W=9, K=6, window=(3, 3), *, stride=1, padding=0, dilation=1, bn=True, bias=False,
    depthwise_bias=False, residual=False, dtype=torch.float32, bn_dtype=None, seed=0, **options,
) -> Case:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    P, Q = output_size(H, W, window, stride, padding, dilation)
    tensors = {
        "x": _random(g, N, C, H, W).to(dtype),
        "depthwise_weight": _random(g, C, 1, *window, scale=(window[0] * window[1]) ** -0.5).to(dtype),
        "pointwise_weight": _random(g, K, C, 1, 1, scale=C**-0.5).to(dtype),
    }
    if bn:
        tensors |= batch_norm_tensors(g, K, bn_dtype or dtype)
    if depthwise_bias:
        tensors["depthwise_bias"] = _random(g, C, scale=0.5).to(dtype)
    if bias:
        tensors["bias"] = _random(g, K, scale=0.5).to(dtype)
    if residual:
        tensors["residual"] = _random(g, N, K, P, Q).to(dtype)
    return Case("separable_conv2d", tensors, {"stride": stride, "padding": padding, "dilation": dilation, **options})


def pair_case(
    N=2, C=5, H=7, W=9, M=8, K=6, windows=((1, 3), (3, 1)), *, padding1=(0, 1), padding2=(1, 0), bn=True, bias=False,
    dtype=torch.float32, bn_dtype=None, seed=0, **options,
) -> Case:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    (R1, S1), (R2, S2) = windows
    tensors = {
        "x": _random(g, N, C, H, W).to(dtype),
        "weight1": _random(g, M, C, R1, S1, scale=(C * R1 * S1) ** -0.5).to(dtype),
        "weight2": _random(g, K, M, R2, S2, scale=(M * R2 * S2) ** -0.5).to(dtype),
    }
    if bn:
        tensors |= batch_norm_tensors(g, M, bn_dtype or dtype, "1")
        tensors |= batch_norm_tensors(g, K, bn_dtype or dtype, "2")
    if bias:
        tensors["bias1"] = _random(g, M, scale=0.5).to(dtype)
        tensors["bias2"] = _random(g, K, scale=0.5).to(dtype)
    return Case("asymmetric_pair", tensors, {"padding1": padding1, "padding2": padding2, **options})


MAKERS: dict[str, Callable[..., Case]] = {
    "conv2d_bn_act": conv_case,
    "separable_conv2d": separable_case,
    "asymmetric_pair": pair_case,
}

# ---- layouts: the same values behind other strides; NaN lies wherever a view ends

LAYOUTS = (
    "contiguous", "channels_last", "channel_slice", "channel_slice_of_contiguous", "spatial_slice", "every_other_image",
    "transposed", "expanded_batch", "expanded_everywhere",
)  # fmt: skip


def in_layout(t: Tensor, layout: str) -> Tensor:
    """[N, C, H, W] in another memory layout; the expanded layouts also change the values."""
    N, C, H, W = t.shape
    nan = float("nan")

    def inside(wide: tuple[int, ...], index: tuple[slice, ...], memory_format: torch.memory_format) -> Tensor:
        return t.new_full(wide, nan).to(memory_format=memory_format)[index].copy_(t)

    everything = slice(None)
    if layout == "contiguous":
        return t.contiguous()
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "channel_slice":
        return inside((N, C + 5, H, W), (everything, slice(2, 2 + C)), torch.channels_last)
    if layout == "channel_slice_of_contiguous":
        return inside((N, C + 5, H, W), (everything, slice(2, 2 + C)), torch.contiguous_format)
    if layout == "spatial_slice":
        index = (everything, everything, slice(1, 1 + H), slice(2, 2 + W))
        return inside((N, C, H + 3, W + 4), index, torch.channels_last)
    if layout == "every_other_image":
        return inside((2 * N, C, H, W), (slice(None, None, 2),), torch.channels_last)
    if layout == "transposed":
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "expanded_batch":
        return t[:1].contiguous(memory_format=torch.channels_last).expand(N, C, H, W)
    if layout == "expanded_everywhere":
        return t[:1, :1, :1, :1].expand(N, C, H, W)
    raise ValueError(layout)


# ---- evaluating and checking


@dataclass
class Outcome:
    y: Tensor
    grads: dict[str, Tensor]
    statistics: dict[str, Tensor]


def is_statistic(name: str) -> bool:
    return name.startswith(STATISTICS)


def leaves_of(case: Case) -> Case:
    """Detached tensors with the same strides; parameters and activations require gradients, statistics are cloned."""
    return replace(
        case,
        tensors={
            name: t.detach().clone() if is_statistic(name) else t.detach().requires_grad_()
            for name, t in case.tensors.items()
        },
    )


def evaluate(function: Callable[..., Tensor], case: Case, grad_y: Tensor | None, **extra: Any) -> Outcome:
    leaves = leaves_of(case)
    y = call(function, leaves, **extra)
    if grad_y is not None:
        y.backward(grad_y)
    grads = {n: t.grad for n, t in leaves.tensors.items() if t.grad is not None}
    return Outcome(y.detach(), grads, {n: t for n, t in leaves.tensors.items() if is_statistic(n)})


def evaluate_on(backend: str, case: Case, grad_y: Tensor | None = None) -> Outcome:
    with backends.use_backend(backend):
        return evaluate(OPERATORS[case.operator], case, grad_y)


def _sums(case: Case, trace: Trace) -> dict[str, Sum]:
    """The terms that each vector result of the float64 evaluation adds up."""
    sums: dict[str, Sum] = {}
    layers = ("1", "2") if case.operator == "asymmetric_pair" else ("",)
    for layer in layers:
        z, u = trace.before_norm[layer], trace.before_act[layer]
        count, momentum = z.numel() / max(1, z.shape[1]), case.options.get("momentum", 0.1)
        if u.grad is None:
            continue
        if f"running_mean{layer}" in case.tensors:
            if case.options.get("training"):
                mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=False)
            else:
                mean, var = case.tensors[f"running_mean{layer}"].double(), case.tensors[f"running_var{layer}"].double()
            centred = z - mean.view(1, -1, 1, 1)
            rstd = (var.view(1, -1, 1, 1) + case.options.get("eps", 1e-5)).rsqrt()
            sums[f"bn_weight{layer}"] = Sum.of(u.grad * centred * rstd)
            sums[f"bn_bias{layer}"] = Sum.of(u.grad)
            sums[f"running_mean{layer}"] = Sum.of(z, momentum / count)
            sums[f"running_var{layer}"] = Sum.of(z * centred, 2 * momentum / count)
        # the gradient of z is what batch statistics leave of this; what they cancel has been rounded all the same
        before_cancelling = z.grad
        if f"running_mean{layer}" in case.tensors and case.options.get("training"):
            gamma = case.tensors.get(f"bn_weight{layer}", torch.ones(()))
            before_cancelling = u.grad * rstd * gamma.double().view(1, -1, 1, 1)
        sums[f"bias{layer}"] = Sum.of(before_cancelling)
        # With one input channel batch norm takes the weight's scale away too: the true gradient cancels to nearly zero.
        one_channel = "separable" in case.operator and case.tensors["x"].shape[1] == 1
        if one_channel or (case.tensors["x"].dtype == torch.float64 and "separable" in case.operator):
            sums["pointwise_weight"] = Sum.of(before_cancelling, trace.before_norm["depthwise_"].abs().max().item())
    if "depthwise_" in trace.before_norm and trace.before_norm["depthwise_"].grad is not None:
        sums["depthwise_bias"] = Sum.of(trace.before_norm["depthwise_"].grad)
    return sums


def check(case: Case, backend: str, **options: Any) -> Outcome:
    """:func:`_check`; the reference runs on one thread, because its tensors are small."""
    if backend == "reference":
        with one_thread():
            return _check(case, backend, **options)
    return _check(case, backend, **options)


def _check(case: Case, backend: str, *, grad_layout: str = "channels_last", backward: bool = True) -> Outcome:
    """Forward and backward on a forced backend: accuracy, dtypes, memory format, counters, inputs left alone."""
    operator, dtype = case.operator, case.tensors["x"].dtype
    composition = COMPOSITIONS[operator]
    before = {name: t.detach().clone() for name, t in case.tensors.items()}

    trace = Trace()
    with one_thread():
        probe = evaluate(composition, case.cast(torch.float64), None, trace=trace)
    assert trace.output_preactivation is not None
    grad_y = None
    if backward:
        g = torch.Generator().manual_seed(99)
        grad_y = torch.randn(probe.y.shape, generator=g, dtype=torch.float64).to(probe.y.device, dtype)
        activation = case.options.get("activation", DEFAULT_ACTIVATION[operator])
        grad_y[near_kink(trace.output_preactivation, activation, dtype)] = 0
        grad_y = in_layout(grad_y, grad_layout)

    backends.reset_counters()
    ours = evaluate_on(backend, case, grad_y)
    assert_ran_on(backend, operator, backward=backward and grad_y is not None and grad_y.numel() > 0)

    trace = Trace()
    with one_thread():
        grad64 = None if grad_y is None else grad_y.double()
        exact = evaluate(composition, case.cast(torch.float64), grad64, trace=trace)
        sums = _sums(case, trace)
        for layer in trace.before_act:  # batch statistics take any constant away: this gradient is zero, not noise
            if case.options.get("training") and f"bn_weight{layer}" in case.tensors and f"bias{layer}" in exact.grads:
                exact.grads[f"bias{layer}"].zero_()
        other = "contiguous" if is_channels_last(case.tensors["x"]) else "channels_last"
        torchs = [
            evaluate(composition, case, grad_y),
            evaluate(composition, case.but(x=in_layout(case.tensors["x"], other)), grad_y),
            evaluate(REVERSED[operator], case, grad_y),
        ]
        if dtype == torch.float64:  # the truth against itself says nothing: see what one ulp in the inputs does to it
            torchs += [evaluate(composition, perturbed(case, seed), grad_y) for seed in range(3)]

    def compare(name: str, part: Callable[[Outcome], Tensor]) -> None:
        compute_dtype = max((dtype, part(ours).dtype), key=lambda d: torch.finfo(d).eps)
        assert_as_accurate_as_torch(
            part(ours), part(exact), [part(t) for t in torchs], name=name, total=sums.get(name.split()[-1]),
            compute_dtype=compute_dtype,
        )  # fmt: skip

    compare("y", lambda o: o.y)
    for name in exact.grads:
        assert name in ours.grads, f"no gradient for {name}"
        compare(f"gradient of {name}", lambda o, name=name: o.grads[name])
        assert ours.grads[name].dtype == case.tensors[name].dtype
    assert set(ours.grads) == set(exact.grads)
    for name in exact.statistics:
        compare(name, lambda o, name=name: o.statistics[name])
        if not case.options.get("training", False):
            assert torch.equal(ours.statistics[name], before[name]), f"{name} changed in evaluation"

    for name, t in case.tensors.items():
        assert torch.equal(t.nan_to_num(), before[name].nan_to_num()), f"{name} was written to"
    if backend == "reference":
        assert ours.y.stride() == torchs[0].y.stride()
    else:
        assert_memory_format(ours.y, case.tensors["x"])
    return ours


def perturbed(case: Case, seed: int) -> Case:
    """Every value moved up or down by one unit in the last place."""
    g = torch.Generator().manual_seed(seed)

    def moved(t: Tensor) -> Tensor:
        sign = torch.randint(0, 2, t.shape, generator=g, dtype=t.dtype) * 2 - 1
        return t * (1 + torch.finfo(t.dtype).eps * sign)

    return replace(case, tensors={name: moved(t.detach()) for name, t in case.tensors.items()})


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def assert_memory_format(y: Tensor, x: Tensor) -> None:
    """The output has the input's memory format, wherever the shapes tell one format from the other."""
    channels_last = is_channels_last(x)
    if not channels_last and (not x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        return
    expected = torch.channels_last if channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=expected), f"strides {y.stride()} of {tuple(y.shape)}, expected {expected}"


@contextmanager
def one_thread() -> Iterator[None]:
    """Small tensors are faster so, above all where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_ran_on(backend: str, operator: str, *, backward: bool) -> None:
    """The counters since the last reset name kernels of this backend, and of no other."""
    counts = {name: n for name, n in backends.counters().items() if n and not name.startswith("layout.")}
    others = {name for name in counts if not name.split(".")[2].startswith(backend)}
    assert not others, f"forced {backend}, but {others} ran"
    assert any(name.startswith(f"{operator}.forward.{backend}") for name in counts) or (
        operator == "asymmetric_pair" and any(name.startswith(f"conv2d_bn_act.forward.{backend}") for name in counts)
    ), counts  # in training the pair is two convolutions
    if backward and backend != "reference":  # autograd differentiates the reference; it has no kernel to count
        assert any("backward" in name.split(".")[1] for name in counts), counts
