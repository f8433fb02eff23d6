"""What is compiled: every layer of both networks, forward, training and backward, and every tile that may be chosen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from inception_kernels.models.layers import LayerSpec, distinct_layers
from inception_kernels.triton import _convolution_descriptor as descriptor
from inception_kernels.triton import conv2d_bn_act, label_smoothing_cross_entropy, separable_conv2d
from inception_kernels.triton.runtime import Device
from tools.triton_gates.capture import Compiled, compiling

BATCHES = (1, 8, 256)
NETWORKS = ("inception_v3", "xception")


@dataclass(frozen=True)
class Case:
    """One layer at one batch size; `what` is forward, training, backward or tiles."""

    layer: LayerSpec
    batch: int
    what: str

    def __str__(self) -> str:
        return f"{self.layer} batch {self.batch} {self.what}"


def cases(batches: tuple[int, ...] = BATCHES) -> Iterator[Case]:
    for network in NETWORKS:
        for layer in distinct_layers(network):
            for batch in batches:
                yield Case(layer, batch, "forward")
                yield Case(layer, batch, "tiles")
            yield Case(layer, max(batches), "training")
            yield Case(layer, max(batches), "backward")


def compile_case(case: Case, arch: str) -> list[Compiled]:
    """Every kernel that the case launches on this architecture."""
    with compiling(arch) as compiled:
        {"forward": _forward, "training": _training, "backward": _backward, "tiles": _tiles}[case.what](case)
    return compiled


def compile_loss(arch: str, classes: int = 1000, rows: int = 256) -> list[Compiled]:
    """The loss, forward and backward, with and without class weights."""
    logits = torch.empty(rows, classes, dtype=torch.bfloat16, device="meta")
    target = torch.empty(rows, dtype=torch.int64, device="meta")
    with compiling(arch) as compiled:
        for weight in (None, torch.empty(classes, device="meta")):
            loss, statistics = label_smoothing_cross_entropy.label_smoothing_cross_entropy(
                logits, target, weight, 0.1, -100, "mean"
            )
            label_smoothing_cross_entropy.label_smoothing_cross_entropy_backward(
                loss, logits, target, weight, statistics, 0.1, -100, "mean"
            )
    return compiled


def _activations(*sizes: int) -> Tensor:
    return torch.empty(sizes, dtype=torch.bfloat16, device="meta", memory_format=torch.channels_last)


@dataclass(frozen=True)
class _Inputs:
    x: Tensor
    weights: tuple[Tensor, ...]
    residual: Tensor | None
    vector: Tensor  # [K], stands for every parameter of batch norm

    @classmethod
    def of(cls, case: Case) -> _Inputs:
        layer = case.layer
        K = layer.out_channels
        return cls(
            _activations(case.batch, layer.in_channels, layer.height, layer.width),
            tuple(torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in layer.weight_shapes),
            _activations(case.batch, K, *layer.output_size) if layer.adds_residual else None,
            torch.empty(K, device="meta"),
        )


def _forward(case: Case) -> None:
    layer, given = case.layer, _Inputs.of(case)
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


def _training(case: Case) -> None:
    layer, given = case.layer, _Inputs.of(case)
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


def _backward(case: Case) -> None:
    layer, given = case.layer, _Inputs.of(case)
    v, added = given.vector, given.residual is not None
    z = _activations(case.batch, layer.out_channels, *layer.output_size)
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


def _tiles(case: Case) -> None:
    """The forward pass, plain and with statistics, once for every tile that may be chosen for it."""
    for forward in (_forward, _training):
        found: list[list[descriptor.Boxes]] = []

        def note(
            N: int, P: int, Q: int, C: int, K: int, moments: bool, device: Device, found: Any = found
        ) -> descriptor.Boxes:  # fmt: skip
            found.append(descriptor.configurations(N, P, Q, C, K, moments, device.capability))
            return found[-1][0]

        with mock.patch.object(descriptor, "choose_boxes", side_effect=note):
            forward(case)
        for boxes in [boxes for tiles in found for boxes in tiles[1:]]:
            with mock.patch.object(descriptor, "choose_boxes", return_value=boxes):
                forward(case)
