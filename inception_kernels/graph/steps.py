"""What a captured network consists of: modules that say in plain PyTorch what one step of a program computes.

A captured graph is a `torch.fx.GraphModule` that calls these modules, and PyTorch operators where it has none: it can
be executed as it is, which is how the passes are tested. Every value of a step is `[N, C, H, W]`. Vectors per channel
are kept in float64; `None` stands for 1 (scale) and 0 (shift).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int, int]
Pair = tuple[int, int]

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "relu6": F.relu6, "elu": F.elu, "silu": F.silu}


def window_size(size: int, window: int, stride: int, padding: int, dilation: int, ceil_mode: bool = False) -> int:
    """Outputs along one direction, as PyTorch counts them."""
    span = size + 2 * padding - dilation * (window - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    count = -(-span // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding else count


class Step(nn.Module):
    """act(scale * f(x) + shift + residual); the residual is the second argument of a call."""

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, scale: Tensor | None = None, shift: Tensor | None = None, activation: str = "none") -> None:
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.activation = activation

    def finish(self, z: Tensor, residual: Tensor | None) -> Tensor:
        if self.scale is not None:
            z = z * self.scale.to(z.dtype)[:, None, None]
        if self.shift is not None:
            z = z + self.shift.to(z.dtype)[:, None, None]
        if residual is not None:
            z = z + residual
        return ACTIVATIONS[self.activation](z)

    def output_shape(self, x: Shape) -> Shape:
        return x

    def extra_repr(self) -> str:
        return "" if self.activation == "none" else self.activation


class Convolution(Step):
    """A dense convolution. x ``[N, C, H, W]`` -> ``[N, K, P, Q]``."""

    weight: Tensor

    def __init__(
        self,
        weight: Tensor,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        activation: str = "none",
    ) -> None:
        super().__init__(scale, shift, activation)
        self.register_buffer("weight", weight, persistent=False)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    @property
    def window(self) -> Pair:
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def is_pointwise(self) -> bool:
        """A 1 x 1 that reads every pixel once: linear in each pixel's channels."""
        return self.window == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation)
        return self.finish(z, residual)

    def output_shape(self, x: Shape) -> Shape:
        size = [
            window_size(n, k, s, p, d)
            for n, k, s, p, d in zip(x[2:], self.window, self.stride, self.padding, self.dilation, strict=True)
        ]
        return x[0], self.weight.shape[0], size[0], size[1]

    def extra_repr(self) -> str:
        K, C, R, S = self.weight.shape
        return f"{C} -> {K}, {R} x {S}, stride {self.stride}, {self.activation}"


class Depthwise(Step):
    """A convolution of every channel by itself; no step of a program unless a 1 x 1 follows it."""

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair) -> None:
        super().__init__(None, bias)
        self.register_buffer("weight", weight, persistent=False)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.weight.shape[0])
        return self.finish(z, residual)

    def output_shape(self, x: Shape) -> Shape:
        size = [
            window_size(n, k, s, p, d)
            for n, k, s, p, d in zip(
                x[2:], self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True
            )
        ]
        return x[0], x[1], size[0], size[1]


class Separable(Step):
    """input activation -> depthwise -> + bias -> mid activation -> 1 x 1. ``[N, C, H, W]`` -> ``[N, K, P, Q]``."""

    depthwise_weight: Tensor
    depthwise_bias: Tensor | None
    pointwise_weight: Tensor

    def __init__(
        self,
        depthwise_weight: Tensor,
        depthwise_bias: Tensor | None,
        pointwise_weight: Tensor,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        mid_activation: str = "none",
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        activation: str = "none",
    ) -> None:
        super().__init__(scale, shift, activation)
        self.register_buffer("depthwise_weight", depthwise_weight, persistent=False)
        self.register_buffer("depthwise_bias", depthwise_bias, persistent=False)
        self.register_buffer("pointwise_weight", pointwise_weight, persistent=False)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.input_activation, self.mid_activation = "none", mid_activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = ACTIVATIONS[self.input_activation](x)
        mid = F.conv2d(x, self.depthwise_weight, None, self.stride, self.padding, self.dilation, x.shape[1])
        if self.depthwise_bias is not None:
            mid = mid + self.depthwise_bias.to(mid.dtype)[:, None, None]
        return self.finish(F.conv2d(ACTIVATIONS[self.mid_activation](mid), self.pointwise_weight), residual)

    def output_shape(self, x: Shape) -> Shape:
        size = [
            window_size(n, k, s, p, d)
            for n, k, s, p, d in zip(
                x[2:], self.depthwise_weight.shape[2:], self.stride, self.padding, self.dilation, strict=True
            )
        ]
        return x[0], self.pointwise_weight.shape[0], size[0], size[1]

    def extra_repr(self) -> str:
        K, C = self.pointwise_weight.shape[:2]
        return f"{self.input_activation} -> {C} -> {K}, stride {self.stride}, {self.activation}"


class MaxPool(Step):
    def __init__(self, window: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool) -> None:
        super().__init__()
        self.window, self.stride, self.padding = window, stride, padding
        self.dilation, self.ceil_mode = dilation, ceil_mode

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z = F.max_pool2d(x, self.window, self.stride, self.padding, self.dilation, self.ceil_mode)
        return self.finish(z, residual)

    def output_shape(self, x: Shape) -> Shape:
        size = [
            window_size(n, k, s, p, d, self.ceil_mode)
            for n, k, s, p, d in zip(x[2:], self.window, self.stride, self.padding, self.dilation, strict=True)
        ]
        return x[0], x[1], size[0], size[1]

    def extra_repr(self) -> str:
        return f"{self.window}, stride {self.stride}"


class AveragePool(Step):
    """window None: the whole image."""

    def __init__(
        self,
        window: Pair | None,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> None:
        super().__init__()
        self.window, self.stride, self.padding, self.ceil_mode = window, stride, padding, ceil_mode
        self.count_include_pad, self.divisor = count_include_pad, divisor
        self.dilation = (1, 1)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.window is None:
            z = x.mean((2, 3), keepdim=True)
        else:
            z = F.avg_pool2d(
                x, self.window, self.stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor
            )
        return self.finish(z, residual)

    def output_shape(self, x: Shape) -> Shape:
        if self.window is None:
            return x[0], x[1], 1, 1
        size = [
            window_size(n, k, s, p, 1, self.ceil_mode)
            for n, k, s, p in zip(x[2:], self.window, self.stride, self.padding, strict=True)
        ]
        return x[0], x[1], size[0], size[1]

    def extra_repr(self) -> str:
        return "whole image" if self.window is None else f"{self.window}, stride {self.stride}, {self.activation}"


class Elementwise(Step):
    """Batch norm, activation or addition that nothing else took in. `offset`: a batch norm's largest |mean| / std."""

    def __init__(
        self,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        activation: str = "none",
        offset: float = 0.0,
    ) -> None:
        super().__init__(scale, shift, activation)
        self.offset = offset

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.finish(x, residual)


class Concatenate(nn.Module):
    """Of channels. Not a step: every input is written where it belongs."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, 1)

    def output_shape(self, *inputs: Shape) -> Shape:
        return inputs[0][0], sum(shape[1] for shape in inputs), *inputs[0][2:]


class Slice(nn.Module):
    """Channels [begin, begin + count). Not a step: a view."""

    def __init__(self, begin: int, count: int) -> None:
        super().__init__()
        self.begin, self.count = begin, count

    def forward(self, x: Tensor) -> Tensor:
        return x.narrow(1, self.begin, self.count)

    def output_shape(self, x: Shape) -> Shape:
        return x[0], self.count, *x[2:]


class Flatten(nn.Module):
    """``[N, C, 1, 1]`` -> ``[N, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def concatenated(vectors: Sequence[Tensor | None], lengths: Sequence[int], missing: float) -> Tensor | None:
    """Vectors per channel one after the other; None where all are."""
    if all(vector is None for vector in vectors):
        return None
    parts = [
        torch.full((length,), missing, dtype=torch.float64) if vector is None else vector
        for vector, length in zip(vectors, lengths, strict=True)
    ]
    return torch.cat(parts)
