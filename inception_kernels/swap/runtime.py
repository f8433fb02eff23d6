"""One fused layer inside somebody's model: decide at each call whether it may run fused, and run it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _get_tracing_state
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn.modules import module as _module

from .. import backends
from ..ops._common import cast, shape_numbers
from ..ops.conv2d_bn_act import conv2d_bn_act
from ..ops.prepared import PreparedConv2dBNAct, PreparedSeparableConv2d
from ..ops.separable_conv2d import separable_conv2d
from ..triton.tuning import Selection
from .atoms import batch_counter, numeric_padding
from .prepared_cache import Prepared, PreparedCache
from .repeated import RepeatedStep

_GLOBAL_HOOKS = (
    _module._global_forward_hooks,
    _module._global_forward_pre_hooks,
    _module._global_backward_hooks,
    _module._global_backward_pre_hooks,
)
_recording = threading.local()
_recorders = 0  # of all threads: asking threading.local for what is not there formats a message
_recorders_lock = threading.Lock()


@dataclass(slots=True, eq=False)  # not frozen: one is made in every call, and that would take three times as long
class Parts:
    """The modules of one fused layer as they are at this call; `members` are all that the call bypasses."""

    depthwise: nn.Conv2d | None
    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None
    members: tuple[nn.Module, ...]

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Weights and biases of both convolutions, then the four vectors of the batch norm."""
        # Straight from the dictionaries: nn.Module.__getattr__ costs more than the rest of a cached call's checks.
        conv, depthwise, norm = self.conv._parameters, self.depthwise, self.norm
        window = {} if depthwise is None else depthwise._parameters
        affine = {} if norm is None else norm._parameters
        statistics = {} if norm is None else norm._buffers
        return (
            window.get("weight"),
            window.get("bias"),
            conv.get("weight"),
            conv.get("bias"),
            affine.get("weight"),
            affine.get("bias"),
            statistics.get("running_mean"),
            statistics.get("running_var"),
        )

    def are_registered(self) -> bool:
        """Whether all of `tensors` are parameters and buffers, and not properties or plain attributes."""
        for module in (self.conv, self.depthwise, self.norm):
            if module is not None and not ("weight" in module._parameters and "bias" in module._parameters):
                return False
        norm = self.norm
        return norm is None or ("running_mean" in norm._buffers and "running_var" in norm._buffers)

    def count_batch(self) -> None:
        counter = None if self.norm is None else batch_counter(self.norm)
        if counter is not None:
            counter.add_(1)


@dataclass(frozen=True)
class LastCall:
    """What a layer did when it was last called outside torch.compile."""

    ran: str  # "prepared", "operator" or "original"
    backend: str = ""
    reasons: dict[str, str] = field(default_factory=dict)
    converted: bool = False  # the input was not channels-last
    selections: tuple[Selection, ...] = ()  # configurations of the Triton kernels that ran


_RAN_PREPARED = {
    (device, converted): LastCall("prepared", device, converted=converted)
    for device in ("cpu", "cuda")
    for converted in (False, True)
}
_RAN_OPERATOR = {
    (backend, converted): LastCall("operator", backend, converted=converted)
    for backend in ("cpu", "cuda")
    for converted in (False, True)
}


@contextmanager
def record_inputs() -> Iterator[list[tuple[FusedLayer, Tensor]]]:
    """Collect (layer, input) of each fused call in this thread inside the block."""
    global _recorders
    seen: list[tuple[FusedLayer, Tensor]] = []
    before = getattr(_recording, "seen", None)
    _recording.seen = seen
    with _recorders_lock:
        _recorders += 1
    try:
        yield seen
    finally:
        with _recorders_lock:
            _recorders -= 1
        _recording.seen = before


def not_eager(x: Any) -> str | None:
    """Why a call with x is not one that eager PyTorch makes on a plain tensor, as the operators need it; None if it is.

    First what a look at x's sizes would be recorded by.
    """
    if type(x) is not Tensor and type(x) is not nn.Parameter:
        return f"the input is a {type(x).__name__}, not a plain tensor"
    if _get_tracing_state() is not None:
        return "torch.jit.trace records the original modules"
    if peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return "a function transform or forward-mode differentiation is active"
    return None


class FusedLayer:
    """Description, cache and history of one fused layer. Copies and pickles carry the description only.

    `choices` holds what `tune` measured: "inference" or "training" -> "fused", "triton" or "original".
    """

    def __init__(self, path: str, operator: str, input_activation: str, mid_activation: str, activation: str) -> None:
        self.path = path
        self.operator = operator
        self.input_activation = input_activation
        self.mid_activation = mid_activation
        self.activation = activation
        self.choices: dict[str, str] = {}
        self._forget()

    def _forget(self) -> None:
        self.last: LastCall | None = None
        self._prepared = PreparedCache(self.operator)
        self._repeated: RepeatedStep | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "last": None, "_repeated": None}

    def drop_cache(self) -> None:
        self._prepared.drop_cache()
        self._repeated = None

    # -- may it run fused?

    def blocked(self, x: Any, parts: Parts) -> str | None:
        """Why this call must run the original modules; None where the fused operator does exactly the same."""
        for member in parts.members:
            if (
                member._forward_hooks
                or member._forward_pre_hooks
                or member._backward_hooks
                or member._backward_pre_hooks
            ):
                return f"a {type(member).__name__} inside it has hooks"
            if "forward" in member.__dict__:
                return f"a {type(member).__name__} inside it has a forward of its own"
        conv, depthwise = parts.conv, parts.depthwise
        if conv._modules or (depthwise is not None and depthwise._modules):
            return "a convolution inside it is parametrized"
        if conv.padding_mode != "zeros" or (depthwise is not None and depthwise.padding_mode != "zeros"):
            return "padding_mode is no longer 'zeros'"
        if is_compiling():
            return None
        reason = not_eager(x)
        if reason is not None:
            return reason
        if any(_GLOBAL_HOOKS):
            return "a global module hook wants to see every module"
        if x.dim() != 4:
            return f"the input has {x.dim()} dimensions"
        if not conv.__dict__.get("_is_replica") and not parts.are_registered():
            return "a parameter or a running statistic inside it is computed, or no parameter or buffer"
        weight: Any = conv._parameters.get("weight")  # without nn.Module.__getattr__, as in Parts
        if weight is None:
            weight = conv.weight
        if type(weight) is not nn.Parameter and type(weight) is not Tensor:
            return f"a weight inside it is a {type(weight).__name__}"
        if x.device != weight.device:
            return f"the input is on {x.device}, the weight on {weight.device}"
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            return f"the input is {x.dtype}, the weight {weight.dtype}"
        if self.choices and self.choices.get(self.run_mode(parts)) == "original":
            return "tune measured the original modules to be faster"
        return None

    @staticmethod
    def run_mode(parts: Parts) -> str:
        norm_trains = parts.norm is not None and parts.norm.training
        return "training" if norm_trains or torch.is_grad_enabled() else "inference"

    def ran_original(self, reason: str) -> None:
        if not torch.compiler.is_compiling():
            self.last = LastCall("original", "torch", {"fused": reason})

    # -- run it

    def __call__(self, x: Tensor, parts: Parts, residual: Tensor | None = None) -> Tensor:
        """Output `[N, K, P, Q]`, channels-last whatever the input's layout: only the first layer converts.

        `residual` is added before the activation, where one is given.
        """
        if is_compiling():
            return self._run_operator(x.contiguous(memory_format=torch.channels_last), parts, residual)
        seen = getattr(_recording, "seen", None) if _recorders else None
        if seen is not None:
            seen.append((self, x))
        converted = not x.is_contiguous(memory_format=torch.channels_last)
        if converted:
            x = x.contiguous(memory_format=torch.channels_last)
        by_triton = bool(self.choices) and self.choices.get(self.run_mode(parts)) == "triton"
        repeated = self._repeated
        if repeated is not None and residual is None and not by_triton and repeated.holds(x, parts):
            y = repeated(x)
            self.last = _RAN_OPERATOR[repeated.backend, converted]
            return y
        prepared = None if by_triton else self._prepare(x, parts)
        if prepared is not None:
            try:
                y = prepared(x, residual)
            except RuntimeError:  # the operator's checks say in the caller's terms what does not fit
                return self._run_operator(x, parts, residual)
            backends.record(self.operator, x.device.type, {})
            self.last = _RAN_PREPARED[x.device.type, converted]
            return y
        with backends.preferring("triton") if by_triton else nullcontext():
            y = self._run_operator(x, parts, residual)
        choice = backends.last_choice()
        if choice is not None:
            self.last = LastCall("operator", choice.backend, choice.reasons, converted, choice.selections)
            self._repeated = None if residual is not None else RepeatedStep.after(self, x, y, parts, choice.backend)
        return y

    def _options(self, parts: Parts) -> dict[str, Any]:
        window = parts.conv if parts.depthwise is None else parts.depthwise
        return {
            "stride": window.stride,
            "padding": numeric_padding(window),
            "dilation": window.dilation,
            "eps": 1e-5 if parts.norm is None else parts.norm.eps,
        }

    def _prepare(self, x: Tensor, parts: Parts) -> Prepared | None:
        """The layer with BN folded and weights packed, where nothing can be trained and nothing changed."""
        norm = parts.norm
        if norm is not None and (norm.training or norm._buffers.get("running_mean") is None):
            return None
        if parts.conv.__dict__.get("_is_replica"):
            return None
        tensors = parts.tensors()
        window = parts.conv if parts.depthwise is None else parts.depthwise
        settings = (window.stride, window.padding, window.dilation, None if norm is None else norm.eps)
        shapes, build = partial(self.shapes, x, parts), partial(self._build, tensors, parts)
        return self._prepared.get(x, tensors, tensors[2], settings, shapes, build)

    def shapes(self, x: Tensor, parts: Parts) -> tuple[int, ...]:
        """What the CUDA kernels are asked about."""
        options = self._options(parts)
        window = parts.conv if parts.depthwise is None else parts.depthwise
        sizes = (parts.conv.weight.shape[0], x.shape[1], *window.weight.shape[2:])
        return shape_numbers(x.shape, sizes, options["stride"], options["padding"], options["dilation"])

    def _build(
        self, tensors: tuple[Tensor | None, ...], parts: Parts, dtype: torch.dtype | None
    ) -> PreparedConv2dBNAct | PreparedSeparableConv2d:
        """`dtype`: what the weights become; None leaves them as they are."""
        options = self._options(parts)
        depthwise_weight, depthwise_bias, weight, bias, bn_weight, bn_bias, mean, var = tensors
        depthwise_weight, weight = cast(depthwise_weight, dtype), cast(weight, dtype)
        assert weight is not None
        if self.operator == "conv2d_bn_act":
            return PreparedConv2dBNAct(
                weight, bn_weight, bn_bias, mean, var, bias, activation=self.activation, **options
            )
        assert depthwise_weight is not None
        return PreparedSeparableConv2d(
            depthwise_weight, weight, bn_weight, bn_bias, mean, var, depthwise_bias, bias,
            input_activation=self.input_activation, mid_activation=self.mid_activation,
            activation=self.activation, **options,
        )  # fmt: skip

    def _run_operator(self, x: Tensor, parts: Parts, residual: Tensor | None = None) -> Tensor:
        depthwise, conv, norm = parts.depthwise, parts.conv, parts.norm
        arguments = {**self._options(parts), **_norm_arguments(norm, x)}
        if depthwise is None:
            y = conv2d_bn_act(
                x, conv.weight, bias=conv.bias, residual=residual, activation=self.activation, **arguments
            )  # fmt: skip
        else:
            y = separable_conv2d(
                x, depthwise.weight, conv.weight, depthwise_bias=depthwise.bias, bias=conv.bias, residual=residual,
                input_activation=self.input_activation, mid_activation=self.mid_activation,
                activation=self.activation, **arguments,
            )  # fmt: skip
        parts.count_batch()  # after the call: a refused batch is not counted
        return y


def _norm_arguments(norm: nn.BatchNorm2d | None, x: Tensor) -> dict[str, Any]:
    """What torch.nn.BatchNorm2d.forward would do now, in the operators' terms."""
    if norm is None:
        return {}
    momentum = norm.momentum
    if momentum is None:  # cumulative average over all batches, this one included
        counter = batch_counter(norm)
        momentum = 0.0 if counter is None else 1.0 / (float(counter) + 1.0)
    mean, var = norm.running_mean, norm.running_var
    training = norm.training or (mean is None and var is None)
    if norm.training and not norm.track_running_stats:
        mean = var = None
    if training and mean is None and norm.weight is None:
        # All four None would mean "no batch norm": statistics that nobody reads say that there is one.
        mean, var = x.new_zeros(norm.num_features), x.new_ones(norm.num_features)
    return {
        "bn_weight": norm.weight,
        "bn_bias": norm.bias,
        "running_mean": mean,
        "running_var": var,
        "training": training,
        "momentum": momentum,
    }
