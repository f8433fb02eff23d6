"""A fused layer's training step on the CPU whose arguments the operator has checked before.

A small layer's convolution takes less time than checking its arguments. They are the same tensors in every step, so
what the operator would find is known while they, the settings and the input's shape are the same.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import backends
from ..ops._common import autocast_dtype, update_running_statistics
from ..ops.conv2d_bn_act import training_calls as dense_calls
from ..ops.separable_conv2d import training_calls as separable_calls
from .atoms import numeric_padding

if TYPE_CHECKING:
    from .runtime import FusedLayer, Parts


def _settings(parts: Parts) -> tuple[object, ...] | None:
    """What a user may set between two steps, as it is; None where the step is not of this kind."""
    norm = parts.norm
    if norm is None or not norm.training or not norm.track_running_stats or norm.momentum is None:
        return None
    window = parts.conv if parts.depthwise is None else parts.depthwise
    return window.stride, window.padding, window.dilation, norm.momentum, norm.eps


class RepeatedStep:
    """Take one with `after` behind a call that the operator accepted; it may be called while `holds`."""

    def __init__(
        self, layer: FusedLayer, x: Tensor, y: Tensor, parts: Parts, tensors: tuple[Tensor | None, ...]
    ) -> None:
        norm, window = parts.norm, parts.conv if parts.depthwise is None else parts.depthwise
        assert norm is not None and norm.momentum is not None
        self._operator = layer.operator
        self._shape, self._dtype, self._cast = x.shape, x.dtype, autocast_dtype(x)
        self._settings = _settings(parts)
        self._seen = [(tensor, None if tensor is None else tensor.data_ptr()) for tensor in tensors]
        self._weight_shapes = [None if tensor is None else tensor.shape for tensor in (tensors[0], tensors[2])]
        running = [tensor for tensor in tensors[6:] if tensor is not None]
        self._written = [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in running]  # contiguous
        geometry = (tuple(window.stride), numeric_padding(window), tuple(window.dilation))
        if parts.depthwise is None:
            self._options: tuple[Any, ...] = (*geometry, layer.activation, norm.eps)
        else:
            activations = (layer.input_activation, layer.mid_activation, layer.activation)
            self._options = (*geometry, *activations, norm.eps)
        self._statistics = (tensors[6], tensors[7], norm.momentum, y.numel() // y.shape[1])

    @staticmethod
    def after(layer: FusedLayer, x: Tensor, y: Tensor, parts: Parts, backend: str) -> RepeatedStep | None:
        """None where a step needs what this does not do."""
        if backend != "cpu" or _settings(parts) is None or parts.conv.__dict__.get("_is_replica"):
            return None
        tensors = parts.tensors()
        if any(running is None or not running.is_contiguous() for running in tensors[6:]):
            return None
        return RepeatedStep(layer, x, y, parts, tensors)

    def holds(self, x: Tensor, parts: Parts) -> bool:
        """Whether the operator would find in these arguments what it found then. x is channels-last."""
        if x.shape != self._shape or x.dtype != self._dtype or _settings(parts) != self._settings:
            return False
        if backends.forced() is not None or autocast_dtype(x) != self._cast:
            return False
        tensors = parts.tensors()
        for tensor, (seen, address) in zip(tensors, self._seen, strict=True):
            if tensor is not seen or (tensor is not None and tensor.data_ptr() != address):
                return False
        depthwise, _, weight, *_, mean, var = tensors
        if [None if depthwise is None else depthwise.shape, weight.shape] != self._weight_shapes:  # type: ignore[union-attr]
            return False
        if mean.requires_grad or var.requires_grad:  # type: ignore[union-attr]
            return False
        begin = x.data_ptr()
        end = begin + x.nbytes
        return all(end <= first or last <= begin for first, last in self._written)

    def __call__(self, x: Tensor, parts: Parts) -> Tensor:
        depthwise, depthwise_bias, weight, bias, bn_weight, bn_bias, *_ = parts.tensors()
        assert weight is not None
        if self._cast is not None:
            x = x.to(self._cast)
        backends.record(self._operator, "cpu", {})
        use = partial(self._use_statistics, parts)
        if depthwise is None:
            call = dense_calls["inception_kernels"]
            return call(use, x, weight, bn_weight, bn_bias, bias, None, *self._options)
        call = separable_calls["inception_kernels"]
        return call(use, x, depthwise, weight, bn_weight, bn_bias, depthwise_bias, bias, None, *self._options)

    def _use_statistics(self, parts: Parts, mean: Tensor, var: Tensor) -> None:
        """Together: activation checkpointing leaves a layer that it computes again as soon as the call has saved."""
        update_running_statistics(*self._statistics, mean, var)
        parts.count_batch()
