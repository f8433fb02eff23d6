"""Modules over the fused operators. Their children are torch.nn layers, so checkpoints keep the usual keys.

A child that has hooks is called, and with it all others: the module is then plain PyTorch.

Where nothing can be trained a module keeps its batch norm folded and its weights packed until one of them changes, and
in training steps it checks its arguments once, as swapped layers do (`swap.runtime`): both for channels-last inputs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from . import backends, ops
from .ops._checks import IntOrPair
from .ops._common import cast, shape_numbers, suggests_channels_last
from .ops.prepared import PreparedAsymmetricPair
from .reference._parts import activate
from .swap.atoms import numeric_padding
from .swap.caches import DropsCaches
from .swap.prepared_cache import PreparedCache
from .swap.runtime import FusedLayer, Parts


def batch_norm_arguments(bn: nn.BatchNorm2d) -> dict[str, Any]:
    """The keyword arguments with which an operator does what ``bn`` would do now; call :func:`count_batch` afterwards.

    Turns ``momentum=None`` into the factor of a cumulative average, as torch.nn.BatchNorm2d does.

    Raises:
        TypeError: a SyncBatchNorm in training, whose statistics are those of all processes: the operators know one.
    """
    if bn.training and isinstance(bn, nn.SyncBatchNorm):
        raise TypeError("bn: expected a BatchNorm2d in training, got a SyncBatchNorm, which no operator computes")
    momentum = bn.momentum
    if momentum is None and _counts_batches(bn):
        momentum = 1.0 / (float(bn.num_batches_tracked) + 1.0)  # type: ignore[arg-type]
    return {
        "bn_weight": bn.weight,
        "bn_bias": bn.bias,
        "running_mean": bn.running_mean,
        "running_var": bn.running_var,
        "training": bn.training or bn.running_mean is None,
        "momentum": 0.0 if momentum is None else momentum,
        "eps": bn.eps,
    }


def count_batch(*norms: nn.BatchNorm2d | None) -> None:
    """What a training batch norm does beside the arithmetic. After the operator: refused input counts as no batch."""
    for bn in norms:
        if bn is not None and _counts_batches(bn):
            bn.num_batches_tracked.add_(1)  # type: ignore[union-attr]


def _counts_batches(bn: nn.BatchNorm2d) -> bool:
    return bn.training and bn.track_running_stats and bn.num_batches_tracked is not None


def padding_of(conv: nn.Conv2d) -> tuple[int, int]:
    """The zero padding (height, width) of a convolution on both sides.

    Raises:
        ValueError: "same" padding of an even span, which pads one side more.
    """
    if conv.padding == "valid":
        return 0, 0
    if isinstance(conv.padding, str):
        spans = [dilation * (size - 1) for dilation, size in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(span % 2 for span in spans):
            raise ValueError(f"padding='same': expected odd windows, got {conv.kernel_size} dilated by {conv.dilation}")
        return spans[0] // 2, spans[1] // 2
    return conv.padding[0], conv.padding[1]


def _four(bn: dict[str, Any]) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    return bn["bn_weight"], bn["bn_bias"], bn["running_mean"], bn["running_var"]


def _hooked(*modules: nn.Module | None) -> bool:
    """Whether a call of one of them would do something besides its forward."""
    return any(
        each is not None
        and bool(each._forward_hooks or each._forward_pre_hooks or each._backward_hooks or each._backward_pre_hooks)
        for each in modules
    )


def _takes(layer: FusedLayer, parts: Parts, x: Tensor) -> bool:
    """Whether a fused layer computes what the operator would, in the same memory format."""
    if not all(isinstance(member, nn.Conv2d | nn.BatchNorm2d) for member in parts.members):
        return False  # somebody put another module there
    if layer.blocked(x, parts) is not None:
        return False
    if numeric_padding(parts.conv if parts.depthwise is None else parts.depthwise) is None:
        return False
    # One channel or one pixel: in both formats at once.
    return x.is_contiguous(memory_format=torch.channels_last) and (not x.is_contiguous() or suggests_channels_last(x))


def _finish(u: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    return activate(u if residual is None else u + residual, activation)


class _FusedModule(DropsCaches):
    """One fused layer: children `_convolution`, and `depthwise` and `bn` where there are any."""

    _operator: str
    _convolution: str

    def __init__(self) -> None:
        super().__init__()
        self._layer: FusedLayer | None = None

    def _caches(self) -> list[FusedLayer]:
        return [] if self._layer is None else [self._layer]

    def _parts(self) -> Parts:
        modules: Any = self._modules  # nn.Module.__getattr__ would cost more than the checks
        depthwise, conv, bn = modules.get("depthwise"), modules[self._convolution], modules.get("bn")
        return Parts(depthwise, conv, bn, tuple(each for each in (depthwise, conv, bn) if each is not None))

    def _fused(self, activations: tuple[str, str, str]) -> FusedLayer:
        """`activations`: before, between and after the convolutions, as they are set now."""
        layer = self._layer
        if layer is None or (layer.input_activation, layer.mid_activation, layer.activation) != activations:
            layer = self._layer = FusedLayer("", self._operator, *activations)
        return layer

    def _kept(self, x: Tensor, residual: Tensor | None, activations: tuple[str, str, str]) -> Tensor | None:
        """The result by what is kept of the module; None where the operator has to be called."""
        if is_compiling():
            return None
        layer, parts = self._fused(activations), self._parts()
        return layer(x, parts, residual) if _takes(layer, parts, x) else None


class ConvBNAct(_FusedModule):
    """Convolution -> BN -> activation in one operator: the ``BasicConv2d`` of Inception-v3.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias: as torch.nn.Conv2d.
        activation: "none", "relu", "relu6", "elu" or "silu".
        eps, momentum: as torch.nn.BatchNorm2d.

    Children ``conv`` and ``bn`` hold the parameters. Input ``[N, C, H, W]``, optional residual ``[N, K, P, Q]``.
    """

    _operator, _convolution = "conv2d_bn_act", "conv"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        activation: str = "relu",
        bias: bool = False,
        eps: float = 1e-3,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=bias)  # type: ignore[arg-type]
        self.bn = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum)
        self.activation = activation

    def _activations(self) -> tuple[str, str, str]:
        return "none", "none", self.activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if _hooked(self.conv, self.bn):
            return _finish(self.bn(self.conv(x)), residual, self.activation)
        kept = self._kept(x, residual, self._activations())
        if kept is not None:
            return kept
        conv = self.conv
        y = ops.conv2d_bn_act(
            x, conv.weight, bias=conv.bias, residual=residual, stride=conv.stride, padding=padding_of(conv),
            dilation=conv.dilation, activation=self.activation, **batch_norm_arguments(self.bn),
        )  # fmt: skip
        count_batch(self.bn)
        return y


class SeparableConv2d(_FusedModule):
    """[act] -> depthwise -> [act] -> pointwise -> [BN] -> [+ residual] -> [act] in one operator: the unit of Xception.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias: as torch.nn.Conv2d; all but
            out_channels belong to the depthwise part, bias to both.
        input_activation, mid_activation, activation: "none", "relu", "relu6", "elu" or "silu".
        batch_norm: whether a BN follows the pointwise convolution.
        eps, momentum: as torch.nn.BatchNorm2d.

    Children ``depthwise``, ``pointwise`` and ``bn`` hold the parameters.
    """

    _operator, _convolution = "separable_conv2d", "pointwise"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair = 3,
        stride: IntOrPair = 1,
        padding: IntOrPair = 1,
        dilation: IntOrPair = 1,
        input_activation: str = "none",
        mid_activation: str = "none",
        activation: str = "none",
        bias: bool = False,
        batch_norm: bool = True,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, kernel_size, stride, padding, dilation, groups=in_channels, bias=bias  # type: ignore[arg-type]
        )  # fmt: skip
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.bn = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum) if batch_norm else None
        self.activations = (input_activation, mid_activation, activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        depthwise, pointwise = self.depthwise, self.pointwise
        before, mid, after = self.activations
        if _hooked(depthwise, pointwise, self.bn):
            z = pointwise(activate(depthwise(activate(x, before)), mid))
            return _finish(z if self.bn is None else self.bn(z), residual, after)
        kept = self._kept(x, residual, self.activations)
        if kept is not None:
            return kept
        bn = {} if self.bn is None else batch_norm_arguments(self.bn)
        y = ops.separable_conv2d(
            x, depthwise.weight, pointwise.weight, residual=residual, stride=depthwise.stride,
            padding=padding_of(depthwise), dilation=depthwise.dilation, depthwise_bias=depthwise.bias,
            bias=pointwise.bias, input_activation=before, mid_activation=mid, activation=after, **bn,
        )  # fmt: skip
        count_batch(self.bn)
        return y


class AsymmetricPair(DropsCaches):
    """n x n factorised into 1 x n and n x 1, each with BN and activation; in evaluation one operator.

    Args:
        in_channels, mid_channels, out_channels: channels before, between and after.
        n: odd length of the window; "same" padding.
        order: "1xn_nx1" or "nx1_1xn".
        activation: after both convolutions.
        eps, momentum: as torch.nn.BatchNorm2d.

    Children ``first`` and ``second`` are :class:`ConvBNAct`.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        n: int = 7,
        order: str = "1xn_nx1",
        activation: str = "relu",
        eps: float = 1e-3,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        if n < 1 or n % 2 == 0:
            raise ValueError(f"n: expected an odd length, so that the padding is the same on both sides, got {n}")
        windows = {"1xn_nx1": ((1, n), (n, 1)), "nx1_1xn": ((n, 1), (1, n))}
        if order not in windows:
            raise ValueError(f"order: expected 1xn_nx1 or nx1_1xn, got {order!r}")
        one, two = windows[order]
        options: dict[str, Any] = {"activation": activation, "eps": eps, "momentum": momentum}
        self.first = ConvBNAct(in_channels, mid_channels, one, padding=(one[0] // 2, one[1] // 2), **options)
        self.second = ConvBNAct(mid_channels, out_channels, two, padding=(two[0] // 2, two[1] // 2), **options)
        self._prepared = PreparedCache("asymmetric_pair")

    def _caches(self) -> list[PreparedCache]:
        return [self._prepared]

    def _kept(self, x: Tensor, settings: dict[str, Any]) -> Tensor | None:
        """The result in evaluation by weights that were packed before; None where the operator has to be called."""
        if settings["training"] or is_compiling() or self.__dict__.get("_is_replica"):
            return None
        first, second = self.first, self.second
        parts = first._parts(), second._parts()
        layers = (each._fused(each._activations()) for each in (first, second))
        if not all(_takes(layer, part, x) for layer, part in zip(layers, parts, strict=True)):
            return None
        tensors = (*parts[0].tensors()[2:], *parts[1].tensors()[2:])
        paddings = padding_of(first.conv), padding_of(second.conv)
        options = (*paddings, first.activation, second.activation, settings["eps"])
        shapes, build = partial(self._shapes, x, paddings), partial(self._build, tensors, options)
        prepared = self._prepared.get(x, tensors, tensors[0], options, shapes, build)
        if prepared is None:
            return None
        try:
            y = prepared(x)
        except RuntimeError:  # the operator's checks say in the caller's terms what does not fit
            return None
        backends.record(self._prepared.operator, x.device.type, {})
        return y

    def _shapes(self, x: Tensor, paddings: tuple[tuple[int, int], tuple[int, int]]) -> tuple[int, ...]:
        windows = self.first.conv.weight.shape, self.second.conv.weight.shape
        sizes = [n + 2 * pad - k + 1 for n, pad, k in zip(x.shape[2:], paddings[0], windows[0][2:], strict=True)]
        images = x.shape, (x.shape[0], windows[0][0], *sizes)
        one, two = (
            shape_numbers(image, window, (1, 1), padding, (1, 1))
            for image, window, padding in zip(images, windows, paddings, strict=True)
        )
        return *one, *two

    @staticmethod
    def _build(
        tensors: tuple[Tensor | None, ...], options: tuple[Any, ...], dtype: torch.dtype | None
    ) -> PreparedAsymmetricPair:
        weight1, bias1, *bn1, weight2, bias2, gamma2, beta2, mean2, var2 = tensors
        padding1, padding2, mid_activation, activation, eps = options
        assert weight1 is not None and weight2 is not None
        return PreparedAsymmetricPair(
            cast(weight1, dtype), cast(weight2, dtype), tuple(bn1), (gamma2, beta2, mean2, var2), bias1, bias2,  # type: ignore[arg-type]
            padding1=padding1, padding2=padding2, mid_activation=mid_activation, activation=activation, eps=eps,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first, self.second
        bn1, bn2 = batch_norm_arguments(first.bn), batch_norm_arguments(second.bn)
        if any(bn1[name] != bn2[name] for name in ("training", "momentum", "eps")):
            return second(first(x))  # one of the two is frozen, or was given other settings
        if _hooked(first, second, first.conv, first.bn, second.conv, second.bn):
            return second(first(x))
        kept = self._kept(x, bn1)
        if kept is not None:
            return kept
        y = ops.asymmetric_pair(
            x, first.conv.weight, second.conv.weight, _four(bn1), _four(bn2), first.conv.bias, second.conv.bias,
            padding1=padding_of(first.conv), padding2=padding_of(second.conv), mid_activation=first.activation,
            activation=second.activation, training=bn1["training"], momentum=bn1["momentum"], eps=bn1["eps"],
        )  # fmt: skip
        count_batch(first.bn, second.bn)
        return y


class LabelSmoothingCrossEntropy(nn.Module):
    """:func:`inception_kernels.label_smoothing_cross_entropy` as a module: ``loss(logits, target)``.

    Args:
        smoothing, ignore_index, reduction: as the operator.
        weight: ``[K]`` or None; a buffer, so it moves with the module.
    """

    weight: Tensor | None

    def __init__(
        self,
        smoothing: float = 0.1,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.smoothing, self.ignore_index, self.reduction = smoothing, ignore_index, reduction
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return ops.label_smoothing_cross_entropy(
            logits, target, self.weight, self.smoothing, self.ignore_index, self.reduction
        )


__all__ = [
    "AsymmetricPair",
    "ConvBNAct",
    "LabelSmoothingCrossEntropy",
    "SeparableConv2d",
    "batch_norm_arguments",
    "count_batch",
    "padding_of",
]
