"""What each operator computes, as a plain `torch.nn` module, and our fused call on the same parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inception_kernels as ik
from inception_kernels.ops import prepared
from inception_kernels.ops.avg_pool2d import avg_pool2d
from inception_kernels.ops.max_pool2d import max_pool2d
from inception_kernels.reference._parts import activate

Pair = tuple[int, int]
FusedCall = Callable[[Tensor], Tensor]


class Fusable(Protocol):
    """A plain module that our operators can stand for."""

    def fused(self) -> FusedCall:
        """One call of our operator in the module's mode (training or evaluation)."""

    def prepared(self) -> FusedCall:
        """Our operator for inference on the CPU: BN folded, weights packed."""


class PlainConv(nn.Module):
    """Convolution -> BN -> activation, as `conv2d_bn_act`."""

    def __init__(
        self,
        channels: Pair,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        activation: str,
        eps: float,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels[0], channels[1], kernel, stride, padding, dilation, bias=False)
        self.bn = nn.BatchNorm2d(channels[1], eps=eps)
        self.geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return activate(self.bn(self.conv(x)), self.activation)

    def fused(self) -> FusedCall:
        return lambda x: ik.conv2d_bn_act(
            x, self.conv.weight, *_four(self.bn), **self._options(), training=self.training
        )

    def prepared(self) -> FusedCall:
        return prepared.PreparedConv2dBNAct(self.conv.weight, *_four(self.bn), **self._options())

    def _options(self) -> dict:
        return {**self.geometry, "activation": self.activation, "eps": self.bn.eps}


class PlainSeparable(nn.Module):
    """[act] -> depthwise -> pointwise -> BN -> [act], as `separable_conv2d`."""

    def __init__(
        self,
        channels: Pair,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        input_activation: str,
        activation: str,
        eps: float,
    ) -> None:
        super().__init__()
        inner, outer = channels
        self.depthwise = nn.Conv2d(inner, inner, kernel, stride, padding, dilation, groups=inner, bias=False)
        self.pointwise = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn = nn.BatchNorm2d(outer, eps=eps)
        self.geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        self.input_activation = input_activation
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y = self.pointwise(self.depthwise(activate(x, self.input_activation)))
        return activate(self.bn(y), self.activation)

    def fused(self) -> FusedCall:
        return lambda x: ik.separable_conv2d(
            x,
            self.depthwise.weight,
            self.pointwise.weight,
            *_four(self.bn),
            **self._options(),
            training=self.training,
        )

    def prepared(self) -> FusedCall:
        return prepared.PreparedSeparableConv2d(
            self.depthwise.weight, self.pointwise.weight, *_four(self.bn), **self._options()
        )

    def _options(self) -> dict:
        activations = {"input_activation": self.input_activation, "activation": self.activation}
        return {**self.geometry, **activations, "eps": self.bn.eps}


class PlainPair(nn.Module):
    """1 x n -> BN -> act -> n x 1 -> BN -> act, or the other order, as `asymmetric_pair`."""

    def __init__(self, first: PlainConv, second: PlainConv) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def fused(self) -> FusedCall:
        first, second = self.first, self.second
        return lambda x: ik.asymmetric_pair(
            x,
            first.conv.weight,
            second.conv.weight,
            _four(first.bn),
            _four(second.bn),
            padding1=first.geometry["padding"],
            padding2=second.geometry["padding"],
            mid_activation=first.activation,
            activation=second.activation,
            training=self.training,
            eps=first.bn.eps,
        )

    def prepared(self) -> FusedCall:
        first, second = self.first, self.second
        return prepared.PreparedAsymmetricPair(
            first.conv.weight,
            second.conv.weight,
            _four(first.bn),
            _four(second.bn),
            padding1=first.geometry["padding"],
            padding2=second.geometry["padding"],
            mid_activation=first.activation,
            activation=second.activation,
            eps=first.bn.eps,
        )


class PlainPointwiseDepthwise(nn.Module):
    """Pointwise -> act -> depthwise -> BN -> act, as `pointwise_depthwise_conv2d`."""

    def __init__(
        self, channels: Pair, kernel: Pair, padding: Pair, mid_activation: str, activation: str, eps: float
    ) -> None:
        super().__init__()
        inner, outer = channels
        self.pointwise = nn.Conv2d(inner, outer, 1, bias=False)
        self.depthwise = nn.Conv2d(outer, outer, kernel, padding=padding, groups=outer, bias=False)
        self.bn = nn.BatchNorm2d(outer, eps=eps)
        self.padding = padding
        self.mid_activation = mid_activation
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(activate(self.pointwise(x), self.mid_activation))
        return activate(self.bn(y), self.activation)

    def fused(self) -> FusedCall:
        return lambda x: ik.pointwise_depthwise_conv2d(
            x,
            self.pointwise.weight,
            self.depthwise.weight,
            *_four(self.bn),
            padding=self.padding,
            mid_activation=self.mid_activation,
            activation=self.activation,
            training=self.training,
            eps=self.bn.eps,
        )

    def prepared(self) -> FusedCall:
        return self.fused()


class PlainLoss(nn.Module):
    """Mean cross entropy of logits `[N, K]` against smoothed random labels, as `label_smoothing_cross_entropy`."""

    def __init__(self, rows: int, classes: int, smoothing: float = 0.1) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.target: Tensor
        self.register_buffer("target", torch.randint(classes, (rows,)))

    def forward(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.target, label_smoothing=self.smoothing)

    def fused(self) -> FusedCall:
        return lambda logits: ik.label_smoothing_cross_entropy(logits, self.target, smoothing=self.smoothing)

    def prepared(self) -> FusedCall:
        return self.fused()


class PlainPool(nn.Module):
    """`operator` of `[N, C, H, W]`: `max_pool2d`, or `avg_pool2d` of stride 1 that keeps the image's size."""

    def __init__(self, operator: str, kernel: Pair, stride: Pair, padding: Pair) -> None:
        super().__init__()
        kind = nn.MaxPool2d if operator == "max_pool2d" else nn.AvgPool2d
        self.pool = kind(kernel, stride, padding)
        self.operator, self.geometry = operator, (kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)

    def fused(self) -> FusedCall:
        kernel, stride, padding = self.geometry
        if self.operator == "max_pool2d":
            return self._on_cpu(lambda x: max_pool2d(x, kernel, stride, padding))
        return self._on_cpu(lambda x: avg_pool2d(x, kernel))

    def prepared(self) -> FusedCall:
        return self.fused()

    def _on_cpu(self, call: FusedCall) -> FusedCall:
        """On other devices a swapped model's pools are PyTorch's."""
        return lambda x: call(x) if x.is_cpu else self(x)


def _four(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    return bn.weight, bn.bias, bn.running_mean, bn.running_var


def before_activation(module: nn.Module) -> nn.Module | None:
    """A copy of an operator's module that ends before its last activation, if that has a kink."""
    module = copy.deepcopy(module)
    last = module.second if isinstance(module, PlainPair) else module
    if not isinstance(last, PlainConv | PlainSeparable | PlainPointwiseDepthwise) or "relu" not in last.activation:
        return None
    last.activation = "none"
    return module
