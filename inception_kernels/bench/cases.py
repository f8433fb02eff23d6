"""The cases of a run: every distinct layer of the two networks, read from the models, and the networks themselves.

The other operators have shapes of their own (`extra`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from torch import nn

from inception_kernels.bench.config import Config
from inception_kernels.bench.extra import EXTRA, ExtraLayer
from inception_kernels.bench.plain import PlainConv, PlainPair, PlainSeparable
from inception_kernels.bench.problem import Case
from inception_kernels.models import load
from inception_kernels.models.layers import LayerSpec, PairSpec, distinct_layers, distinct_pairs

# Without the auxiliary head, which no inference runs and which cannot train on one image, and without dropout, whose
# mask would differ from implementation to implementation.
_NETWORK_OPTIONS = {"inception_v3": {"aux_logits": False, "dropout": 0.0}, "xception": {"dropout": 0.0}}
_CLASSIFIER_INPUTS, _CLASSES, _IMAGE_CHANNELS = 2048, 1000, 3


@dataclass(frozen=True)
class _Layer:
    """A layer of a network before a batch is chosen."""

    name: str
    operator: str
    input_shape: tuple[int, int, int]  # [C, H, W]
    module: Callable[[], nn.Module]
    specs: tuple[LayerSpec, ...]
    count: int

    def build(self, batch: int) -> nn.Module:
        return self.module()

    def work(self, batch: int) -> tuple[float, float]:
        """Multiply-adds and elements moved once by one fused kernel."""
        macs = sum(spec.macs(batch) for spec in self.specs)
        first, last = self.specs[0], self.specs[-1]
        height, width = last.output_size
        ends = batch * (first.in_channels * first.height * first.width + last.out_channels * height * width)
        return float(macs), float(ends + sum(spec.parameters for spec in self.specs))


def cases(config: Config) -> list[Case]:
    """What matters most first, for a run that is cut short: networks, inference, the layers with the most work."""
    found = list(_network_cases(config)) if "network" in config.kinds else []
    for pass_ in config.passes if "operator" in config.kinds else ():
        for operator in config.operators:
            for layer in sorted(_of_operator(operator, config), key=_total_work, reverse=True)[: config.layers]:
                found += _layer_cases(layer, pass_, config)
    return found


def _of_operator(operator: str, config: Config) -> list[_Layer | ExtraLayer]:
    if operator in EXTRA:
        return list(EXTRA[operator](config.networks, config.image_size))
    layers = [layer for name in config.networks for layer in _layers(name, config.image_size)]
    return [layer for layer in layers if layer.operator == operator]


def _network_cases(config: Config) -> Iterator[Case]:
    for pass_ in config.passes:
        for name in config.networks:
            for batch in config.batches:
                for dtype in config.dtypes:
                    yield Case(
                        name=name,
                        kind="network",
                        operator=name,
                        batch=batch,
                        dtype=dtype,
                        pass_=pass_,
                        input_shape=(batch, _IMAGE_CHANNELS, config.image_size, config.image_size),
                        build=lambda name=name: load(name, **_NETWORK_OPTIONS[name]),  # type: ignore[misc]
                        layers=_network_work(name, config.image_size, batch),
                    )


def _layer_cases(layer: _Layer | ExtraLayer, pass_: str, config: Config) -> Iterator[Case]:
    for batch in config.batches:
        for dtype in config.dtypes:
            yield Case(
                name=layer.name,
                kind="operator",
                operator=layer.operator,
                batch=batch,
                dtype=dtype,
                pass_=pass_,
                input_shape=(batch, *layer.input_shape),
                build=partial(layer.build, batch),
                layers=(layer.work(batch),),
            )


def _total_work(layer: _Layer | ExtraLayer) -> float:
    return layer.count * layer.work(1)[0]


@lru_cache
def _layers(network: str, image_size: int) -> tuple[_Layer, ...]:
    """Layers are measured without the residual that follows some of them; equal shapes are one layer."""
    counts: dict[LayerSpec, int] = {}
    for spec in distinct_layers(network, image_size):
        bare = replace(spec, adds_residual=False, paths=())
        counts[bare] = counts.get(bare, 0) + spec.count
    found = [_single(network, spec, count) for spec, count in counts.items()]
    return (*found, *(_pair(network, pair) for pair in distinct_pairs(network, image_size)))


@lru_cache
def _network_work(network: str, image_size: int, batch: int) -> tuple[tuple[float, float], ...]:
    """Work of every layer that holds weights, each as often as it occurs; pools and additions are not counted."""
    work = []
    for layer in _layers(network, image_size):
        if layer.operator != "asymmetric_pair":  # its halves are layers themselves
            work += [layer.work(batch)] * layer.count
    classifier = float(batch * _CLASSIFIER_INPUTS * _CLASSES)
    weights = float((_CLASSIFIER_INPUTS + 1) * _CLASSES)
    return (*work, (classifier, weights + batch * (_CLASSIFIER_INPUTS + _CLASSES)))


def _single(network: str, spec: LayerSpec, count: int) -> _Layer:
    shape = (spec.in_channels, spec.height, spec.width)
    build = _separable if spec.operator == "separable_conv2d" else _conv
    return _Layer(f"{network} {spec}", spec.operator, shape, lambda: build(spec), (spec,), count)


def _pair(network: str, pair: PairSpec) -> _Layer:
    first, second = pair.first, pair.second
    shape = (first.in_channels, first.height, first.width)
    return _Layer(
        name=f"{network} {pair}",
        operator="asymmetric_pair",
        input_shape=shape,
        module=lambda: PlainPair(_conv(first), _conv(second)),
        specs=(first, second),
        count=pair.count,
    )


def _conv(spec: LayerSpec) -> PlainConv:
    channels = (spec.in_channels, spec.out_channels)
    return PlainConv(channels, spec.kernel_size, spec.stride, spec.padding, spec.dilation, spec.activation, spec.eps)


def _separable(spec: LayerSpec) -> PlainSeparable:
    return PlainSeparable(
        (spec.in_channels, spec.out_channels),
        spec.kernel_size,
        spec.stride,
        spec.padding,
        spec.dilation,
        spec.input_activation,
        spec.activation,
        spec.eps,
    )
