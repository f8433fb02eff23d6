"""Cases of the operators that neither network has a layer with weights of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from torch import nn

from inception_kernels.bench.plain import PlainLoss, PlainPointwiseDepthwise, PlainPool
from inception_kernels.models.layers import LayerSpec, PoolSpec, distinct_layers, distinct_pools

_CLASSES = (1_000, 17_000, 100_000)  # ImageNet; JFT (Chollet 2017, section 4.1); the most that the loss is made for


@dataclass(frozen=True)
class Loss:
    """`label_smoothing_cross_entropy` of as many rows as the batch has images."""

    classes: int
    operator = "label_smoothing_cross_entropy"
    count = 1

    @property
    def name(self) -> str:
        return f"{self.classes} classes"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.classes,)

    def build(self, batch: int) -> nn.Module:
        return PlainLoss(batch, self.classes)

    def work(self, batch: int) -> tuple[float, float]:
        """One multiply-add per logit, the sum of the softmax; its exponential is not counted."""
        logits = float(batch * self.classes)
        return logits, logits


@dataclass(frozen=True)
class _OfNetwork:
    """A case at a shape that a network has."""

    network: str
    spec: LayerSpec | PoolSpec

    @property
    def count(self) -> int:
        return self.spec.count

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.spec.in_channels, self.spec.height, self.spec.width


@dataclass(frozen=True)
class PointwiseFirst(_OfNetwork):
    """A separable convolution of a network in the other order: the "extreme" Inception module of its channels.

    ReLU after both parts, as in Inception (Chollet 2017, section 1.2).
    """

    spec: LayerSpec
    operator = "pointwise_depthwise_conv2d"

    @property
    def name(self) -> str:
        return f"{self.network} pointwise first {self.spec}"

    def build(self, batch: int) -> nn.Module:
        spec = self.spec
        channels = (spec.in_channels, spec.out_channels)
        return PlainPointwiseDepthwise(channels, spec.kernel_size, spec.padding, "relu", "relu", spec.eps)

    def work(self, batch: int) -> tuple[float, float]:
        """Multiply-adds of both parts, and input, parameters and output moved once."""
        spec = self.spec
        pixels, window = batch * spec.height * spec.width, prod(spec.kernel_size)
        results = batch * spec.out_channels * prod(spec.output_size)
        macs = pixels * spec.in_channels * spec.out_channels + results * window
        parameters = spec.out_channels * (spec.in_channels + window + 2)
        return float(macs), float(pixels * spec.in_channels + results + parameters)


@dataclass(frozen=True)
class Pool(_OfNetwork):
    """A pool of a network."""

    spec: PoolSpec

    @property
    def operator(self) -> str:
        return self.spec.operator

    @property
    def name(self) -> str:
        return f"{self.network} {self.spec}"

    def build(self, batch: int) -> nn.Module:
        spec = self.spec
        return PlainPool(spec.operator, spec.kernel_size, spec.stride, spec.padding)

    def work(self, batch: int) -> tuple[float, float]:
        """One multiply-add per pixel of a window, as of a depthwise convolution; input and output moved once."""
        spec = self.spec
        channels = batch * spec.in_channels
        results = channels * prod(spec.output_size)
        return float(results * prod(spec.kernel_size)), float(channels * spec.height * spec.width + results)


ExtraLayer = Loss | PointwiseFirst | Pool


def _losses(networks: tuple[str, ...], image_size: int) -> Iterable[Loss]:
    return map(Loss, _CLASSES)


def _pointwise_first(networks: tuple[str, ...], image_size: int) -> Iterable[PointwiseFirst]:
    """Every distinct separable convolution of stride and dilation 1, whatever stands before and after it."""
    for network in networks:
        found: dict[LayerSpec, tuple[str, ...]] = {}
        for spec in distinct_layers(network, image_size):
            if spec.operator == "separable_conv2d" and spec.stride == spec.dilation == (1, 1):
                bare = replace(spec, input_activation="none", activation="none", adds_residual=False, paths=())
                found[bare] = found.get(bare, ()) + spec.paths
        yield from (PointwiseFirst(network, replace(spec, paths=paths)) for spec, paths in found.items())


def _pools(operator: str, networks: tuple[str, ...], image_size: int) -> Iterable[Pool]:
    for network in networks:
        yield from (Pool(network, spec) for spec in distinct_pools(network, image_size) if spec.operator == operator)


EXTRA: dict[str, Callable[[tuple[str, ...], int], Iterable[ExtraLayer]]] = {
    Loss.operator: _losses,
    PointwiseFirst.operator: _pointwise_first,
    "max_pool2d": partial(_pools, "max_pool2d"),
    "avg_pool2d": partial(_pools, "avg_pool2d"),
}
