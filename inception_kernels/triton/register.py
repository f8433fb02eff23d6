"""The Triton kernels as dispatcher operators in ``torch.ops.inception_kernels_triton``.

The schemas are those of the compiled operators (csrc/ops.cpp), so that one set of fakes and gradients serves both; a
test holds them equal. The operators are opaque to torch.compile, as the compiled ones are, so that their counters count
what ran. Under Triton's interpreter they take CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops._common import memory_format_of
from ..ops.asymmetric_pair import register as register_asymmetric_pair
from ..ops.conv2d_bn_act import register as register_conv2d_bn_act
from ..ops.label_smoothing_cross_entropy import register as register_label_smoothing_cross_entropy
from ..ops.separable_conv2d import register as register_separable_conv2d
from . import asymmetric_pair, conv2d_bn_act, label_smoothing_cross_entropy, separable_conv2d
from .runtime import interpreted

NAMESPACE = "inception_kernels_triton"

_NORM = "Tensor? bn_weight, Tensor? bn_bias"
_GEOMETRY = "int[2] stride, int[2] padding, int[2] dilation"
_SEPARABLE_ACTIVATIONS = "str input_activation, str mid_activation, str activation"
_PAIR = ", ".join(
    f"Tensor weight{i}, Tensor? bn_weight{i}, Tensor? bn_bias{i}, Tensor? running_mean{i}, Tensor? running_var{i}, "
    f"Tensor? bias{i}"
    for i in (1, 2)
)

SCHEMAS = (
    f"conv2d_bn_act(Tensor x, Tensor weight, {_NORM}, Tensor? running_mean, Tensor? running_var, Tensor? bias, "
    f"Tensor? residual, {_GEOMETRY}, str activation, float eps) -> Tensor",
    f"conv2d_bn_act_training(Tensor x, Tensor weight, {_NORM}, Tensor? bias, Tensor? residual, {_GEOMETRY}, "
    "str activation, float eps) -> (Tensor y, Tensor z, Tensor mean, Tensor var)",
    f"conv2d_bn_act_backward(Tensor grad_y, Tensor x, Tensor weight, {_NORM}, Tensor? mean, Tensor? var, Tensor? bias, "
    f"Tensor? residual, Tensor? z, {_GEOMETRY}, str activation, bool training, float eps, bool[6] output_mask) -> "
    "(Tensor grad_x, Tensor grad_weight, Tensor grad_bn_weight, Tensor grad_bn_bias, Tensor grad_bias, "
    "Tensor grad_residual)",
    f"separable_conv2d(Tensor x, Tensor depthwise_weight, Tensor pointwise_weight, {_NORM}, Tensor? running_mean, "
    f"Tensor? running_var, Tensor? depthwise_bias, Tensor? bias, Tensor? residual, {_GEOMETRY}, "
    f"{_SEPARABLE_ACTIVATIONS}, float eps) -> Tensor",
    f"separable_conv2d_training(Tensor x, Tensor depthwise_weight, Tensor pointwise_weight, {_NORM}, "
    f"Tensor? depthwise_bias, Tensor? bias, Tensor? residual, {_GEOMETRY}, {_SEPARABLE_ACTIVATIONS}, float eps) -> "
    "(Tensor y, Tensor z, Tensor mean, Tensor var)",
    f"separable_conv2d_backward(Tensor grad_y, Tensor x, Tensor depthwise_weight, Tensor pointwise_weight, {_NORM}, "
    "Tensor? mean, Tensor? var, Tensor? depthwise_bias, Tensor? bias, Tensor? residual, Tensor? z, "
    f"{_GEOMETRY}, {_SEPARABLE_ACTIVATIONS}, bool training, float eps, bool[8] output_mask) -> "
    "(Tensor grad_x, Tensor grad_depthwise_weight, Tensor grad_pointwise_weight, Tensor grad_bn_weight, "
    "Tensor grad_bn_bias, Tensor grad_depthwise_bias, Tensor grad_bias, Tensor grad_residual)",
    f"asymmetric_pair(Tensor x, {_PAIR}, int[2] stride1, int[2] stride2, int[2] padding1, int[2] padding2, "
    "str mid_activation, str activation, float eps) -> Tensor",
    "label_smoothing_cross_entropy(Tensor logits, Tensor target, Tensor? weight, float smoothing, int ignore_index, "
    "str reduction) -> (Tensor loss, Tensor statistics)",
    "label_smoothing_cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor? weight, "
    "Tensor statistics, float smoothing, int ignore_index, str reduction) -> Tensor grad_logits",
)


def _in_format_of(t: Tensor, like: Tensor) -> Tensor:
    """Kernels write channels-last; an operator answers in its input's memory format."""
    return t.contiguous(memory_format=memory_format_of(like)) if t.dim() == 4 else t


def _forward(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def operator(x: Tensor, *arguments: Any) -> Tensor:
        return _in_format_of(kernel(x, *arguments), x)

    return operator


def _training(kernel: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    def operator(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        y, z, mean, var = kernel(x, *arguments)
        return _in_format_of(y, x), z, mean, var

    return operator


def _backward(kernel: Callable[..., tuple[Tensor, ...]], residual_at: int) -> Callable[..., tuple[Tensor, ...]]:
    """The first gradient is of x, the last of the residual, which is argument residual_at."""

    def operator(grad_y: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *gradients, grad_residual = kernel(grad_y, x, *arguments)
        residual = arguments[residual_at - 2]
        if residual is not None:
            grad_residual = _in_format_of(grad_residual, residual)
        return _in_format_of(gradients[0], x), *gradients[1:], grad_residual

    return operator


_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "conv2d_bn_act": _forward(conv2d_bn_act.conv2d_bn_act),
    "conv2d_bn_act_training": _training(conv2d_bn_act.conv2d_bn_act_training),
    "conv2d_bn_act_backward": _backward(conv2d_bn_act.conv2d_bn_act_backward, 8),
    "separable_conv2d": _forward(separable_conv2d.separable_conv2d),
    "separable_conv2d_training": _training(separable_conv2d.separable_conv2d_training),
    "separable_conv2d_backward": _backward(separable_conv2d.separable_conv2d_backward, 10),
    "asymmetric_pair": _forward(asymmetric_pair.asymmetric_pair),
    "label_smoothing_cross_entropy": label_smoothing_cross_entropy.label_smoothing_cross_entropy,
    "label_smoothing_cross_entropy_backward": label_smoothing_cross_entropy.label_smoothing_cross_entropy_backward,
}

_library = torch.library.Library(NAMESPACE, "DEF")
for _schema in SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
for _name, _implementation in _IMPLEMENTATIONS.items():
    _library.impl(_name, _implementation, "CUDA")
    if interpreted():
        _library.impl(_name, _implementation, "CPU")

for _register in (
    register_conv2d_bn_act, register_separable_conv2d, register_asymmetric_pair,
    register_label_smoothing_cross_entropy,
):  # fmt: skip
    _register(NAMESPACE)
