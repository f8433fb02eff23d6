"""Calls of the operators for correctness and for the sanitizers; the tests' own cases and their check."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from inception_kernels.models.layers import LayerSpec, PairSpec, distinct_layers, distinct_pairs
from tools.gpu.options import ROOT

sys.path.append(str(ROOT / "tests"))
import operator_cases

NETWORKS = ("inception_v3", "xception")
_MAKERS: dict[str, Callable[..., Any]] = operator_cases.MAKERS
ACTIVATIONS = ("none", "relu", "relu6", "elu", "silu")


@dataclass(frozen=True)
class Call:
    """`build(dtype)` makes the tensors on the CPU."""

    name: str
    build: Callable[[torch.dtype], Any]
    training: bool = False
    backward: bool = False

    def check(self, dtype: torch.dtype, device: str, backend: str) -> None:
        """Raises AssertionError where the backend is further off than the tests allow, or another one ran."""
        case = self.build(dtype).to(device)
        operator_cases.check(case, backend, backward=self.backward)

    def run(self, dtype: torch.dtype, device: str, backend: str) -> None:
        """Once, without looking at the result."""
        case = self.build(dtype).to(device)
        y = operator_cases.evaluate_on(backend, case).y
        if self.backward:
            operator_cases.evaluate_on(backend, case, torch.ones_like(y))


def ragged() -> Iterator[Call]:
    """Odd sizes, one per way to be odd: forward and backward, both ways of batch norm."""
    for label, operator, sizes in _ODD:
        for training in (False, True):
            if training and sizes.get("bn") is False:
                continue
            yield _call(
                f"{operator} {label}{' training' if training else ''}", operator, sizes, training, backward=True
            )
    for activation in ACTIVATIONS:
        sizes = dict(N=2, C=24, H=9, W=11, K=40, activation=activation)
        yield _call(f"conv2d_bn_act {activation}", "conv2d_bn_act", sizes, backward=True)
        yield _call(f"separable_conv2d {activation}", "separable_conv2d", {**sizes, "padding": 1}, backward=True)


def layers(batch: int, image_size: int = 299) -> Iterator[Call]:
    """Every distinct layer shape of the two networks."""
    for network in NETWORKS:
        for spec in distinct_layers(network, image_size):
            yield _call(f"{network} {spec}", spec.operator, {"N": batch, **_sizes(spec)}, backward=True)
        for pair in distinct_pairs(network, image_size):
            yield _call(f"{network} {pair}", "asymmetric_pair", {"N": batch, **_pair_sizes(pair)})


def _call(name: str, operator: str, sizes: dict[str, Any], training: bool = False, backward: bool = False) -> Call:
    def build(dtype: torch.dtype) -> Any:
        norm_dtype = torch.float32 if training else None
        return _MAKERS[operator](**{"bn_dtype": norm_dtype, **sizes}, dtype=dtype, training=training)

    return Call(name, build, training, backward)


def _sizes(spec: LayerSpec) -> dict[str, Any]:
    sizes: dict[str, Any] = dict(
        C=spec.in_channels,
        H=spec.height,
        W=spec.width,
        K=spec.out_channels,
        window=spec.kernel_size,
        stride=spec.stride,
        padding=spec.padding,
        dilation=spec.dilation,
        residual=spec.adds_residual,
        activation=spec.activation,
    )
    if spec.operator == "separable_conv2d":
        sizes["input_activation"] = spec.input_activation
    return sizes


def _pair_sizes(pair: PairSpec) -> dict[str, Any]:
    first, second = pair.first, pair.second
    return dict(
        C=first.in_channels,
        H=first.height,
        W=first.width,
        M=first.out_channels,
        K=second.out_channels,
        windows=(first.kernel_size, second.kernel_size),
        padding1=first.padding,
        padding2=second.padding,
        mid_activation=first.activation,
        activation=second.activation,
    )


_ODD: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("3 channels, stride 2", "conv2d_bn_act", dict(N=3, C=3, H=31, W=29, K=33, window=(3, 3), stride=2)),
    ("1x7, 13 channels", "conv2d_bn_act", dict(N=2, C=13, H=9, W=17, K=19, window=(1, 7), padding=(0, 3))),
    ("7x1, residual", "conv2d_bn_act", dict(N=2, C=72, H=17, W=5, K=48, window=(7, 1), padding=(3, 0), residual=True)),
    ("5x5, dilation 2", "conv2d_bn_act", dict(N=2, C=16, H=13, W=15, K=24, window=(5, 5), padding=4, dilation=2)),
    ("1x1, long sum, no BN", "conv2d_bn_act", dict(N=1, C=1000, H=3, W=5, K=7, window=(1, 1), bn=False, bias=True)),
    ("1x1, 1 pixel of 3 images", "conv2d_bn_act", dict(N=3, C=40, H=1, W=1, K=264, window=(1, 1))),
    ("3x3, 5 channels", "separable_conv2d", dict(N=2, C=5, H=7, W=9, K=6, padding=1, bias=True, depthwise_bias=True)),
    ("3x3, stride 2", "separable_conv2d", dict(N=3, C=24, H=23, W=21, K=136, stride=2, padding=1)),
    ("3x3, residual", "separable_conv2d", dict(N=2, C=72, H=19, W=19, K=72, padding=1, residual=True)),
    ("5x5, dilation 2", "separable_conv2d", dict(N=1, C=17, H=21, W=18, K=31, window=(5, 5), padding=4, dilation=2)),
    ("3x3, wide", "separable_conv2d", dict(N=1, C=64, H=11, W=147, K=128, padding=1, input_activation="relu")),
    ("1x3 -> 3x1", "asymmetric_pair", dict(N=3, C=21, H=8, W=8, M=40, K=24)),
    ("1x7 -> 7x1", "asymmetric_pair",
     dict(N=2, C=64, H=17, W=17, M=48, K=72, windows=((1, 7), (7, 1)), padding1=(0, 3), padding2=(3, 0))),
)  # fmt: skip
