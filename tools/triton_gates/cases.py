"""What is compiled: every layer of both networks, forward, training and backward, and every configuration of each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inception_kernels.models.layers import LayerSpec, PairSpec, distinct_layers, distinct_pairs
from inception_kernels.triton import asymmetric_pair, conv2d_bn_act, label_smoothing_cross_entropy, separable_conv2d
from tools.triton_gates.capture import Launch, collecting

BATCHES = (1, 256)  # between them they launch every kernel that any other batch does: a test says so
PASSES = ("forward", "training", "backward")
NETWORKS = ("inception_v3", "xception")
_CLASSES = 1000


@dataclass(frozen=True)
class Precision:
    """`tf32`: whether PyTorch's convolutions, and so ours, may use it."""

    name: str
    dtype: torch.dtype
    tf32: bool = False


BF16 = Precision("bf16", torch.bfloat16)
FP16 = Precision("fp16", torch.float16)
PRECISIONS = (BF16, FP16, Precision("tf32", torch.float32, tf32=True), Precision("fp32", torch.float32))


@dataclass(frozen=True)
class Case:
    """One layer, pair of layers or loss at one batch size; `what` is forward, training or backward."""

    layer: LayerSpec | PairSpec | None
    batch: int
    what: str
    precision: Precision = BF16

    def __str__(self) -> str:
        return f"{self.layer or 'loss'} batch {self.batch} {self.what} {self.precision.name}"


def cases(batches: tuple[int, ...] = BATCHES, precisions: tuple[Precision, ...] = PRECISIONS) -> Iterator[Case]:
    """Every layer, pair and loss of the networks, in every pass, batch and precision."""
    layers = dict.fromkeys(layer for network in NETWORKS for layer in distinct_layers(network))
    pairs = dict.fromkeys(pair for network in NETWORKS for pair in distinct_pairs(network))
    for precision, batch in itertools.product(precisions, batches):
        for layer, what in itertools.product(layers, PASSES):
            yield Case(layer, batch, what, precision)
        for pair in pairs:
            yield Case(pair, batch, "forward", precision)
        yield Case(None, batch, "forward", precision)
        yield Case(None, batch, "backward", precision)


def matching(pattern: str, **options: Any) -> list[Case]:
    """The cases whose text contains this regular expression."""
    return [case for case in cases(**options) if re.search(pattern, str(case))]


def launches(case: Case, arch: str) -> list[Launch]:
    """Every launch of the case on this architecture, with every configuration that may be chosen."""
    with collecting(arch) as found:
        run(case, "meta")
    return found


def run(case: Case, device: str) -> None:
    """The case's operator once, on tensors of this device whose values are positive noise."""
    with torch.backends.cudnn.flags(allow_tf32=case.precision.tf32):
        if case.layer is None:
            _loss(case, device)
        elif isinstance(case.layer, PairSpec):
            _pair(case, case.layer, device)
        else:
            given = _Inputs.of(case, case.layer, device)
            {"forward": _forward, "training": _training, "backward": _backward}[case.what](case, case.layer, given)


def _loss(case: Case, device: str) -> None:
    """With and without class weights."""
    logits = torch.rand(case.batch, _CLASSES, dtype=case.precision.dtype, device=device)
    target = torch.zeros(case.batch, dtype=torch.int64, device=device)
    for weight in (None, torch.rand(_CLASSES, device=device)):
        loss, statistics = label_smoothing_cross_entropy.label_smoothing_cross_entropy(
            logits, target, weight, 0.1, -100, "mean"
        )
        if case.what == "backward":
            label_smoothing_cross_entropy.label_smoothing_cross_entropy_backward(
                loss, logits, target, weight, statistics, 0.1, -100, "mean"
            )


def _pair(case: Case, pair: PairSpec, device: str) -> None:
    first, second = pair.first, pair.second
    x = _activations(case, device, first.in_channels, first.height, first.width)
    weights = [torch.rand(each.weight_shapes[0], dtype=x.dtype, device=device) for each in (first, second)]
    v, w = (torch.rand(each.out_channels, device=device) for each in (first, second))
    asymmetric_pair.asymmetric_pair(
        x, weights[0], v, v, v, v, None, weights[1], w, w, w, w, None, first.stride, second.stride, first.padding,
        second.padding, first.activation, second.activation, first.eps,
    )  # fmt: skip


def _activations(case: Case, device: str, *sizes: int) -> Tensor:
    x = torch.rand(case.batch, *sizes, dtype=case.precision.dtype, device=device)
    return x.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class _Inputs:
    x: Tensor
    weights: tuple[Tensor, ...]
    residual: Tensor | None
    vector: Tensor  # [K], stands for every parameter of batch norm

    @classmethod
    def of(cls, case: Case, layer: LayerSpec, device: str) -> _Inputs:
        K = layer.out_channels
        return cls(
            _activations(case, device, layer.in_channels, layer.height, layer.width),
            tuple(torch.rand(shape, dtype=case.precision.dtype, device=device) for shape in layer.weight_shapes),
            _activations(case, device, K, *layer.output_size) if layer.adds_residual else None,
            torch.rand(K, device=device),
        )


def _forward(case: Case, layer: LayerSpec, given: _Inputs) -> None:
    v = given.vector
    if layer.operator == "separable_conv2d":
        depthwise, pointwise = given.weights
        separable_conv2d.separable_conv2d(
            given.x, depthwise, pointwise, v, v, v, v, None, None, given.residual, layer.stride, layer.padding,
            layer.dilation, layer.input_activation, "none", layer.activation, layer.eps,
        )  # fmt: skip
    else:
        conv2d_bn_act.conv2d_bn_act(
            given.x, given.weights[0], v, v, v, v, None, given.residual, layer.stride, layer.padding, layer.dilation,
            layer.activation, layer.eps,
        )  # fmt: skip


def _training(case: Case, layer: LayerSpec, given: _Inputs) -> None:
    v = given.vector
    if layer.operator == "separable_conv2d":
        depthwise, pointwise = given.weights
        separable_conv2d.separable_conv2d_training(
            given.x, depthwise, pointwise, v, v, None, None, given.residual, layer.stride, layer.padding,
            layer.dilation, layer.input_activation, "none", layer.activation, layer.eps,
        )  # fmt: skip
    else:
        conv2d_bn_act.conv2d_bn_act_training(
            given.x, given.weights[0], v, v, None, given.residual, layer.stride, layer.padding, layer.dilation,
            layer.activation, layer.eps,
        )  # fmt: skip


def _backward(case: Case, layer: LayerSpec, given: _Inputs) -> None:
    v, added = given.vector, given.residual is not None
    z = _activations(case, given.x.device.type, layer.out_channels, *layer.output_size)
    if layer.operator == "separable_conv2d":
        depthwise, pointwise = given.weights
        separable_conv2d.separable_conv2d_backward(
            z, given.x, depthwise, pointwise, v, v, v, v, None, None, given.residual, z, layer.stride, layer.padding,
            layer.dilation, layer.input_activation, "none", layer.activation, True, layer.eps,
            [True] * 5 + [False, False, added],
        )  # fmt: skip
    else:
        conv2d_bn_act.conv2d_bn_act_backward(
            z, given.x, given.weights[0], v, v, v, v, None, given.residual, z, layer.stride, layer.padding,
            layer.dilation, layer.activation, True, layer.eps, [True] * 4 + [False, added],
        )  # fmt: skip
