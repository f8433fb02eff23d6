"""asymmetric_pair in Triton: one kernel of strips where counts predict it to be faster, else two products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from . import _pair_strips, tuning
from ._convolution import adjacent_channels
from ._counters import count_kernel
from ._epilogue import Epilogue
from ._pair_strips import Sizes, Strips
from ._roofline import Work, seconds
from .conv2d_bn_act import Pair, output_size, product
from .runtime import Device, device_of

_NAME = "asymmetric_pair"
_NO_DILATION = (1, 1)
_TILE = 64  # pixels, and outputs, of a product's tile in a small batch


@dataclass(frozen=True)
class TwoKernels:
    """The intermediate is a tensor, which at these sizes stays in L2."""

    warps: int = 0  # those of the two kernels, which are chosen on their own


def _seconds(
    algorithm: Strips | TwoKernels, N: int, C: int, M: int, K: int, sizes: Sizes, itemsize: int, device: Device
) -> float:  # fmt: skip
    """Predicted from counts."""
    if isinstance(algorithm, Strips):
        return seconds(_pair_strips.work(algorithm, N, C, M, K, sizes, itemsize), device)
    total = 0.0
    for inputs, outputs, (H, W), (P, Q), (R, S) in (
        (C, M, sizes.x, sizes.mid, sizes.window1), (M, K, sizes.mid, sizes.y, sizes.window2),
    ):  # fmt: skip
        tiles = triton.cdiv(N * P * Q, _TILE) * triton.cdiv(outputs, _TILE)
        memory = itemsize * N * (H * W * inputs + P * Q * outputs)
        total += seconds(Work(memory, tiles * _TILE * _TILE * inputs * R * S, 0, tiles), device)
    return total


def asymmetric_pair(
    x: Tensor, weight1: Tensor, bn_weight1: Tensor | None, bn_bias1: Tensor | None, running_mean1: Tensor | None,
    running_var1: Tensor | None, bias1: Tensor | None, weight2: Tensor, bn_weight2: Tensor | None,
    bn_bias2: Tensor | None, running_mean2: Tensor | None, running_var2: Tensor | None, bias2: Tensor | None,
    stride1: Pair, stride2: Pair, padding1: Pair, padding2: Pair, mid_activation: str, activation: str, eps: float,
) -> Tensor:  # fmt: skip
    """[N, K, P, Q] channels-last, with the statistics given."""
    first = Epilogue(bias1, bn_weight1, bn_bias1, running_mean1, running_var1, eps, None, mid_activation)
    second = Epilogue(bias2, bn_weight2, bn_bias2, running_mean2, running_var2, eps, None, activation)
    x = adjacent_channels(x)
    N, C, H, W = x.shape
    M, K = weight1.shape[0], weight2.shape[0]
    window1, window2 = (weight1.shape[2], weight1.shape[3]), (weight2.shape[2], weight2.shape[3])
    mid = output_size((H, W), window1, stride1, padding1, _NO_DILATION)
    size = output_size(mid, window2, stride2, padding2, _NO_DILATION)
    sizes = Sizes((H, W), mid, size, window1, window2, stride1, stride2, padding1, padding2)
    device = device_of(x)

    def candidates() -> list[Strips | TwoKernels]:
        strips = _pair_strips.configurations(C, M, K, sizes, x.dtype, device) if N else []
        return [*strips, TwoKernels()]

    def run(algorithm: Strips | TwoKernels) -> Tensor:
        if isinstance(algorithm, Strips):
            y = torch.empty((N, K, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
            _pair_strips.convolve_pair(x, weight1, weight2, y, first, second, sizes, algorithm)
            return y
        middle = product(x, weight1, stride1, padding1, _NO_DILATION, first)[0]
        return product(middle, weight2, stride2, padding2, _NO_DILATION, second)[0]

    shape: dict[str, tuning.Value] = {"N": N, "C": C, "M": M, "K": K, "sizes": str(sizes)}
    algorithm = tuning.choose(
        _NAME, x, shape, candidates,
        lambda algorithm: _seconds(algorithm, N, C, M, K, sizes, x.element_size(), device), run,
        taps=max(window1[0] * window1[1], window2[0] * window2[1]),
    )  # fmt: skip
    count_kernel(f"{_NAME}.forward.triton_{'strips' if isinstance(algorithm, Strips) else 'two_kernels'}")
    return run(algorithm)
