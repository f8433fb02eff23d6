"""What becomes of a product: act(BN(product + bias) + residual), and the moments of a tile. Shared by every product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._device import activate, load_vector


@triton.jit
def scale_and_shift(
    bias, gamma, beta, mean, var, k, K, eps, BIAS: tl.constexpr, BN: tl.constexpr, GAMMA: tl.constexpr,
    BETA: tl.constexpr,
):  # fmt: skip
    """BN(product + bias) as product * scale + shift, float32, for the outputs k; 0 for those from K on."""
    inside = k < K
    shift = load_vector(bias, k, inside, BIAS, 0.0)
    scale = tl.full(k.shape, 1.0, tl.float32)
    if BN:
        rstd = tl.rsqrt(load_vector(var, k, inside, True, 0.0) + eps)  # one instruction; a root and a quotient are 13
        scale = tl.where(inside, load_vector(gamma, k, inside, GAMMA, 1.0) * rstd, 0.0)
        shift = (shift - load_vector(mean, k, inside, True, 0.0)) * scale + load_vector(beta, k, inside, BETA, 0.0)
    return scale, shift


@triton.jit
def apply(acc, scale, shift, added, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr):
    """act(acc * scale + shift + added) of acc [M, K], float32; `added` counts with RESIDUAL only."""
    u = acc * scale[None, :] + shift[None, :]
    if RESIDUAL:
        u += added.to(tl.float32)
    return activate(u, ACTIVATION)


@triton.jit
def finish(
    acc, added, bias, gamma, beta, mean, var, k, K, eps, BIAS: tl.constexpr, BN: tl.constexpr, GAMMA: tl.constexpr,
    BETA: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """act(BN(acc + bias) + added) of acc [M, K], float32; `added` counts with RESIDUAL only."""
    scale, shift = scale_and_shift(bias, gamma, beta, mean, var, k, K, eps, BIAS, BN, GAMMA, BETA)
    return apply(acc, scale, shift, added, RESIDUAL, ACTIVATION)


@triton.jit
def store_moments(partial, counts, stored, live, tile, k, K):
    """Mean and sum of squared differences of a tile's live rows, to partial [tiles, 2, K]; how many, to counts [tiles].

    `stored` [M, K] is the tile as it is stored: that is what batch norm sees.
    """
    seen = stored.to(tl.float32)
    count = tl.sum(tl.where(live, 1.0, 0.0), axis=0)
    mean = tl.sum(tl.where(live[:, None], seen, 0.0), axis=0) / count
    difference = tl.where(live[:, None], seen - mean[None, :], 0.0)
    tl.store(partial + 2 * tile * K + k, mean, mask=k < K)
    tl.store(partial + (2 * tile + 1) * K + k, tl.sum(difference * difference, axis=0), mask=k < K)
    tl.store(counts + tile, count, mask=tl.min(k, axis=0) == 0)


@dataclass(frozen=True)
class Epilogue:
    """act(BN(product + bias) + residual); all vectors [K], the residual [N, K, P, Q]."""

    bias: Tensor | None = None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    eps: float = 0.0
    residual: Tensor | None = None
    activation: str = "none"

    def vectors(self, anything: Tensor) -> tuple[Tensor, ...]:
        """Pointers of bias, gamma, beta, mean and var; `anything` for those that the kernel will not read."""
        given = (self.bias, self.gamma, self.beta, self.mean, self.var)
        return tuple(anything if v is None else v.contiguous() for v in given)

    def flags(self) -> dict[str, bool | str]:
        bn = self.mean is not None
        return {
            "BIAS": self.bias is not None, "BN": bn, "GAMMA": bn and self.gamma is not None,
            "BETA": bn and self.beta is not None, "RESIDUAL": self.residual is not None,
            "ACTIVATION": self.activation,
        }  # fmt: skip


class Moments(NamedTuple):
    """Per tile the mean and sum of squared differences, partial [tiles, 2, K], of how many pixels, counts [tiles]."""

    partial: Tensor
    counts: Tensor

    @classmethod
    def of(cls, tiles: int, K: int, device: torch.device) -> Moments:
        """Of so many tiles, to be written by a kernel."""
        partial = torch.empty((tiles, 2, K), dtype=torch.float32, device=device)
        return cls(partial, torch.empty(tiles, dtype=torch.float32, device=device))


def pointers_of(moments: Moments | None, anything: Tensor) -> tuple[Tensor, Tensor]:
    """`anything` for those that the kernel will not write."""
    return (anything, anything) if moments is None else moments
