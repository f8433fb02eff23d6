"""Pairs of convolutions for the CUDA kernels of asymmetric_pair: the call, and what it should give."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from cuda_tensors import dense, to_tf32
from oracle import activate, assert_as_accurate_as_torch
from torch import Tensor

KERNELS = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}


@dataclass(frozen=True)
class Half:
    channels: int
    window: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Shape:
    N: int
    C: int
    H: int
    W: int
    first: Half
    second: Half


def pair(N: int, C: int, H: int, W: int, K1: int, K2: int, n: int, columns_first: bool = False) -> Shape:
    """1 x n -> n x 1, or n x 1 -> 1 x n, of the same size as the input."""
    row, column = Half(K1, (1, n), (0, n // 2)), Half(K1, (n, 1), (n // 2, 0))
    first, second = (column, row) if columns_first else (row, column)
    return Shape(N, C, H, W, first, replace(second, channels=K2))


@dataclass
class Layer:
    half: Half
    weight: Tensor
    scale: Tensor
    shift: Tensor
    activation: str

    def compute(self, x: Tensor) -> Tensor:
        def channels(v: Tensor) -> Tensor:
            return v.to(x.dtype).view(1, -1, 1, 1)

        z = F.conv2d(x, self.weight.to(x.dtype), None, self.half.stride, self.half.padding, self.half.dilation)
        return activate(z * channels(self.scale) + channels(self.shift), self.activation)

    def arguments(self, packed: Tensor) -> dict[str, Any]:
        return dict(
            packed=packed, scale=self.scale, shift=self.shift, activation=self.activation,
            channels=self.half.channels, window=self.half.window, stride=self.half.stride, padding=self.half.padding, dilation=self.half.dilation,
        )  # fmt: skip


@dataclass
class Problem:
    x: Tensor
    first: Layer
    second: Layer
    tf32: bool

    @staticmethod
    def random(shape: Shape, kernel: str, activations: tuple[str, str] = ("relu", "relu")) -> "Problem":
        generator = torch.Generator().manual_seed(0)
        dtype, tf32 = KERNELS[kernel], kernel == "tf32"

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator)

        def layer(half: Half, channels: int, activation: str) -> Layer:
            fan_in = channels * half.window[0] * half.window[1]
            weight = (normal(half.channels, channels, *half.window) / fan_in**0.5).to(dtype)
            weight = to_tf32(weight) if tf32 else weight
            return Layer(half, weight, normal(half.channels).abs() + 0.5, normal(half.channels), activation)

        x = dense(normal(shape.N, shape.C, shape.H, shape.W).to(dtype))
        return Problem(
            to_tf32(x) if tf32 else x,
            layer(shape.first, shape.C, activations[0]),
            layer(shape.second, shape.first.channels, activations[1]),
            tf32,
        )

    def compute(self, dtype: torch.dtype) -> Tensor:
        """In float64 the truth; in the problem's dtype PyTorch's answer, whose intermediate is of that dtype."""
        intermediate = self.first.compute(self.x.to(dtype))
        if self.tf32 and dtype == torch.float32:
            intermediate = to_tf32(intermediate)
        return self.second.compute(intermediate)

    def check(self, y: Tensor, name: str) -> None:
        assert_as_accurate_as_torch(y, self.compute(torch.float64), [self.compute(y.dtype)], name=name)
