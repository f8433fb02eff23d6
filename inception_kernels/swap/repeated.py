"""A fused layer's training step whose arguments the compiled operator, the CPU's or CUDA's, has checked before.

A small layer's convolution takes less time than checking its arguments. They are the same tensors in every step, so
what the operator would find is known while they, the settings and the input's shape are the same.
"""

from __future__ import annotations

from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import backends
from ..ops import update_running_statistics
from ..ops._common import autocast_dtype
from ..ops.conv2d_bn_act import training_calls as dense_calls
from ..ops.separable_conv2d import training_calls as separable_calls
from .atoms import batch_counter, frozen, numeric_padding

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

    def __init__(self, layer: FusedLayer, x: Tensor, y: Tensor, parts: Parts, backend: str) -> None:
        norm, window = parts.norm, parts.conv if parts.depthwise is None else parts.depthwise
        assert norm is not None and norm.momentum is not None
        self.backend, self._forced = backend, backends.forced()
        self._operator = layer.operator
        self._shape, self._dtype, self._cast = x.shape, x.dtype, autocast_dtype(x)
        self._settings = frozen(_settings(parts) or ())
        self._tensors = tensors = (*parts.tensors(), batch_counter(norm))
        depthwise, depthwise_bias, weight, bias, bn_weight, bn_bias, mean, var, batches = tensors
        assert weight is not None and mean is not None and var is not None
        self._addresses = [(tensor, tensor.data_ptr()) for tensor in tensors if tensor is not None]
        self._window_shape, self._weight_shape = window.weight.shape, weight.shape
        self._running = [(each.data_ptr(), each.data_ptr() + each.nbytes) for each in (mean, var)]
        # All at once: activation checkpointing leaves a layer that it computes again as soon as the call has saved.
        use = partial(update_running_statistics.run, mean, var, batches, norm.momentum, y.numel() // y.shape[1])
        geometry = (tuple(window.stride), numeric_padding(window), tuple(window.dilation))
        if depthwise is None:
            self._apply = dense_calls["inception_kernels"].apply
            options: tuple[Any, ...] = (*geometry, layer.activation, norm.eps)
            self._arguments: tuple[Any, ...] = (weight, bn_weight, bn_bias, bias, None, options, use)
        else:
            self._apply = separable_calls["inception_kernels"].apply
            options = (*geometry, layer.input_activation, layer.mid_activation, layer.activation, norm.eps)
            self._arguments = (
                depthwise, weight, bn_weight, bn_bias, depthwise_bias, bias, None, options, use
            )  # fmt: skip

    @staticmethod
    def after(layer: FusedLayer, x: Tensor, y: Tensor, parts: Parts, backend: str) -> RepeatedStep | None:
        """None where a step needs what this does not do."""
        if backend not in ("cpu", "cuda") or _settings(parts) is None or parts.conv.__dict__.get("_is_replica"):
            return None
        assert parts.norm is not None
        if not update_running_statistics.fits(parts.tensors()[6:], batch_counter(parts.norm), x):
            return None
        return RepeatedStep(layer, x, y, parts, backend)

    def holds(self, x: Tensor, parts: Parts) -> bool:
        """Whether the operator would find in these arguments what it found then. x is channels-last."""
        if x.shape != self._shape or x.dtype != self._dtype or _settings(parts) != self._settings:
            return False
        if backends.forced() != self._forced or autocast_dtype(x) != self._cast:
            return False
        tensors: tuple[Any, ...] = (*parts.tensors(), batch_counter(parts.norm))  # type: ignore[arg-type]
        if not all(map(is_, tensors, self._tensors)):
            return False
        for tensor, address in self._addresses:
            if tensor.data_ptr() != address:
                return False
        _, _, weight, _, _, _, mean, var, _ = tensors
        window = weight if parts.depthwise is None else tensors[0]
        if weight.shape != self._weight_shape or window.shape != self._window_shape:
            return False
        if mean.requires_grad or var.requires_grad:
            return False
        begin = x.data_ptr()
        end = begin + x.nbytes
        (mean_begin, mean_end), (var_begin, var_end) = self._running
        return (end <= mean_begin or mean_end <= begin) and (end <= var_begin or var_end <= begin)

    def __call__(self, x: Tensor) -> Tensor:
        if self._cast is not None:
            x = x.to(self._cast)
        backends.record(self._operator, self.backend, {})
        return self._apply(x, *self._arguments)
