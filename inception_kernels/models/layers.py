"""The distinct operator shapes of the two networks, read from the models themselves (for benchmarks and tests)."""

import operator
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from inception_kernels.flops.formulas import (
    conv2d_macs,
    output_size,
    separable_conv2d_macs,
)
from inception_kernels.models.loading import load
from inception_kernels.ops._checks import pair

_ADDITIONS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True, kw_only=True)
class _Windowed:
    """An operator whose window slides over `[N, in_channels, height, width]`, and how often the network has it."""

    operator: str
    in_channels: int
    height: int
    width: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    paths: tuple[str, ...]

    @property
    def count(self) -> int:
        """How often the network has this layer."""
        return len(self.paths)

    @property
    def output_size(self) -> tuple[int, int]:
        """(P, Q)."""
        return output_size((self.height, self.width), self.kernel_size, self.stride, self.padding, self.dilation)


@dataclass(frozen=True, kw_only=True)
class LayerSpec(_Windowed):
    """One operator at one shape, without the batch. Every layer here is followed by batch norm.

    `operator` is `conv2d_bn_act` or `separable_conv2d`; input `[N, in_channels, height, width]`;
    `kernel_size`, `stride`, `padding` and `dilation` are (vertical, horizontal) and, for a separable
    convolution, those of its depthwise part. A ReLU between two layers belongs to the second one as
    `input_activation` where that is separable, otherwise to the first one as `activation`. `adds_residual`:
    the batch norm's result is next added to another tensor. `paths` names the convolution of every
    occurrence.
    """

    out_channels: int
    input_activation: str
    activation: str
    adds_residual: bool
    eps: float

    @property
    def weight_shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """Shapes of the weights: one, or depthwise and pointwise."""
        if self.operator == "separable_conv2d":
            return (self.in_channels, 1, *self.kernel_size), (self.out_channels, self.in_channels, 1, 1)
        return ((self.out_channels, self.in_channels, *self.kernel_size),)

    @property
    def parameters(self) -> int:
        """Weights and the two vectors of the batch norm."""
        return sum(prod(shape) for shape in self.weight_shapes) + 2 * self.out_channels

    def macs(self, batch: int = 1) -> int:
        """Multiply-adds of the forward pass."""
        x, window = self._input_shape(batch), (self.stride, self.padding, self.dilation)
        if self.operator == "separable_conv2d":
            depthwise, pointwise = self.weight_shapes
            return separable_conv2d_macs(x, depthwise, pointwise, *window)
        return conv2d_macs(x, self.weight_shapes[0], *window)

    def backward_macs(self, batch: int = 1) -> int:
        """Multiply-adds of all gradients: each convolution once for its input and once for its weight."""
        return 2 * self.macs(batch)

    def bytes(self, batch: int = 1, dtype: torch.dtype = torch.float32) -> int:
        """Forward traffic of one fused kernel: input, weights, (residual) read once, output written once."""
        outputs = batch * self.out_channels * prod(self.output_size)
        elements = prod(self._input_shape(batch)) + self.parameters + outputs * (2 if self.adds_residual else 1)
        return elements * dtype.itemsize

    def __str__(self) -> str:
        window = "x".join(map(str, self.kernel_size))
        size = str(self.height) if self.height == self.width else f"{self.height}x{self.width}"
        extras = [f"stride {self.stride[0]}"] if self.stride != (1, 1) else []
        extras += [f"{self.input_activation} before"] if self.input_activation != "none" else []
        extras += ["no activation"] if self.activation == "none" and self.operator == "conv2d_bn_act" else []
        extras += ["+ residual"] if self.adds_residual else []
        return " ".join([f"{self.in_channels}->{self.out_channels} {window} @{size}", *extras])

    def _input_shape(self, batch: int) -> tuple[int, int, int, int]:
        return batch, self.in_channels, self.height, self.width


@dataclass(frozen=True)
class PairSpec:
    """Two chained layers 1xn -> nx1 (or nx1 -> 1xn) for `asymmetric_pair`, and how often the network has them."""

    first: LayerSpec
    second: LayerSpec

    @property
    def count(self) -> int:
        return self.first.count

    def macs(self, batch: int = 1) -> int:
        return self.first.macs(batch) + self.second.macs(batch)

    def __str__(self) -> str:
        windows = " -> ".join("x".join(map(str, layer.kernel_size)) for layer in (self.first, self.second))
        channels = f"{self.first.in_channels}->{self.first.out_channels}->{self.second.out_channels}"
        return f"{channels} {windows} @{self.first.height}"


class PoolSpec(_Windowed):
    """A pool at one shape: `operator` is `max_pool2d` or `avg_pool2d`, the other fields are as of a `LayerSpec`."""

    def __str__(self) -> str:
        window = "x".join(map(str, self.kernel_size))
        return f"{self.in_channels} {window} stride {self.stride[0]} @{self.height}"


_Spec = TypeVar("_Spec", LayerSpec, PoolSpec)


def distinct_layers(model_name: str, image_size: int = 299) -> list[LayerSpec]:
    """Every distinct operator shape of a network in evaluation, in order of first use, with its occurrences.

    `model_name` as in `models.load`; the model must be traceable by `torch.fx`.
    """
    return _distinct(_Network(model_name, image_size).layers())


def distinct_pairs(model_name: str, image_size: int = 299) -> list[PairSpec]:
    """Every distinct chain of two asymmetric convolutions whose intermediate nobody else reads."""
    groups: dict[tuple[LayerSpec, LayerSpec], list[tuple[str, str]]] = defaultdict(list)
    for first, second in _Network(model_name, image_size).pairs():
        groups[replace(first, paths=()), replace(second, paths=())].append((first.paths[0], second.paths[0]))
    return [
        PairSpec(
            replace(first, paths=tuple(paths[0] for paths in found)),
            replace(second, paths=tuple(paths[1] for paths in found)),
        )
        for (first, second), found in groups.items()
    ]


def distinct_pools(model_name: str, image_size: int = 299) -> list[PoolSpec]:
    """Every distinct pool with a window of its own; those over whole images are left out."""
    return _distinct(_Network(model_name, image_size).pools())


def _distinct(specs: Iterator[_Spec]) -> list[_Spec]:
    groups: dict[_Spec, list[str]] = defaultdict(list)
    for spec in specs:
        groups[replace(spec, paths=())].extend(spec.paths)
    return [replace(spec, paths=tuple(paths)) for spec, paths in groups.items()]


def _two(values: tuple[int, ...] | str) -> tuple[int, int]:
    if isinstance(values, str):
        raise ValueError(f"expected padding as numbers, got padding={values!r}")
    vertical, horizontal = values
    return vertical, horizontal


class _Network:
    """The graph of a model on meta tensors, with the shape of every intermediate."""

    def __init__(self, model_name: str, image_size: int) -> None:
        with torch.device("meta"):
            model = load(model_name).eval()
            channels = next(module for module in model.modules() if isinstance(module, nn.Conv2d)).in_channels
            image = torch.empty(1, channels, image_size, image_size)
        self.graph_module = fx.symbolic_trace(model)
        ShapeProp(self.graph_module).propagate(image)
        self.modules = dict(self.graph_module.named_modules())
        self.heads: dict[fx.Node, LayerSpec] = {}
        self.tails: dict[fx.Node, fx.Node] = {}  # last node of a layer, its ReLU included -> its first convolution
        for node in self.graph_module.graph.nodes:
            self._match(node)

    def layers(self) -> Iterator[LayerSpec]:
        yield from self.heads.values()

    def pairs(self) -> Iterator[tuple[LayerSpec, LayerSpec]]:
        taken: set[fx.Node] = set()
        for node, layer in self.heads.items():
            producer = self.tails.get(node.all_input_nodes[0])
            if producer is None or producer in taken or len(node.all_input_nodes[0].users) > 1:
                continue
            first = self.heads[producer]
            if 1 in first.kernel_size and layer.kernel_size == first.kernel_size[::-1] != (1, 1):
                taken |= {producer, node}
                yield first, layer

    def pools(self) -> Iterator[PoolSpec]:
        for node in self.graph_module.graph.nodes:
            pool = self._module(node)
            if isinstance(pool, (nn.MaxPool2d, nn.AvgPool2d)):
                _, channels, height, width = node.all_input_nodes[0].meta["tensor_meta"].shape
                yield PoolSpec(
                    operator="max_pool2d" if isinstance(pool, nn.MaxPool2d) else "avg_pool2d",
                    in_channels=channels,
                    height=height,
                    width=width,
                    kernel_size=pair(pool.kernel_size, "kernel_size", 1),
                    stride=pair(pool.stride, "stride", 1),
                    padding=pair(pool.padding, "padding", 0),
                    dilation=pair(getattr(pool, "dilation", 1), "dilation", 1),
                    paths=(str(node.target),),
                )

    def _module(self, node: fx.Node | None) -> nn.Module | None:
        return self.modules[str(node.target)] if node is not None and node.op == "call_module" else None

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def _is_relu(self, node: fx.Node | None) -> bool:
        if node is None:
            return False
        return isinstance(self._module(node), nn.ReLU) or node.target in (F.relu, torch.relu, "relu")

    def _is_depthwise(self, node: fx.Node | None) -> bool:
        conv = self._module(node)
        return isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels == conv.out_channels > 1

    def _match(self, node: fx.Node) -> None:
        conv = self._module(node)
        if not isinstance(conv, nn.Conv2d):
            return
        last, output_conv = node, conv
        separable = self._is_depthwise(node)
        if separable:
            following = self._only_user(node)
            pointwise = self._module(following)
            if not isinstance(pointwise, nn.Conv2d) or pointwise.kernel_size != (1, 1) or following is None:
                return
            last, output_conv = following, pointwise
        elif conv.groups != 1 or self._is_depthwise(node.all_input_nodes[0]):
            return  # the pointwise half of a layer that was matched at its depthwise half
        norm_node = self._only_user(last)
        norm = self._module(norm_node)
        if norm_node is None or not isinstance(norm, nn.BatchNorm2d):
            return
        user = self._only_user(norm_node)
        own_relu = user is not None and self._is_relu(user) and not self._leads_separable(user)
        source = node.all_input_nodes[0]
        _, _, height, width = source.meta["tensor_meta"].shape
        self.heads[node] = LayerSpec(
            operator="separable_conv2d" if separable else "conv2d_bn_act",
            in_channels=conv.in_channels,
            out_channels=output_conv.out_channels,
            height=height,
            width=width,
            kernel_size=_two(conv.kernel_size),
            stride=_two(conv.stride),
            padding=_two(conv.padding),
            dilation=_two(conv.dilation),
            input_activation="relu" if self._is_relu(source) and self._leads_separable(source) else "none",
            activation="relu" if own_relu else "none",
            adds_residual=user is not None and user.target in _ADDITIONS and len(user.all_input_nodes) == 2,
            eps=norm.eps,
            paths=(str(node.target),),
        )
        self.tails[user if own_relu and user is not None else norm_node] = node

    def _leads_separable(self, relu: fx.Node) -> bool:
        return all(self._is_depthwise(user) for user in relu.users)
