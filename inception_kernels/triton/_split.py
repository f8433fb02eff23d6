"""The second stage of products whose depth is split over programs, where tiles are fewer than multiprocessors.

The pieces of the sum lie side by side and are added in their order, so that a result depends on the split but not on
when each piece was ready.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._device import unit_of
from ._epilogue import Epilogue, Moments, finish, pointers_of, store_moments

_BLOCK_M = 16
_BLOCK_K = 64


@triton.jit(
    do_not_specialize=["M", "P", "Q", "K", "y_n", "y_p", "y_q", "r_n", "r_p", "r_q", "PIECES"],
)
def _finish_pieces(
    sums, y, residual, bias, gamma, beta, mean, var, partial, counts, M, P, Q, K, y_n, y_p, y_q, r_n, r_p, r_q, PIECES,
    eps, BIAS: tl.constexpr, BN: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr, RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr, MOMENTS: tl.constexpr, K_UNIT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y [N, K, P, Q] = act(BN(the sum of sums [PIECES, M, K]) + residual), channels adjacent."""
    K = K * K_UNIT
    tile = tl.program_id(0)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    live = m < M
    inside = live[:, None] & (k < K)[None, :]
    n = (m // (P * Q)).to(tl.int64)
    p = (m // Q % P).to(tl.int64)
    q = (m % Q).to(tl.int64)
    piece = sums + m.to(tl.int64)[:, None] * K + k[None, :]
    length = M.to(tl.int64) * K
    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for _ in range(PIECES):
        acc += tl.load(piece, mask=inside, other=0.0)
        piece += length
    added = acc
    if RESIDUAL:
        at = n * (r_n * K_UNIT) + p * (r_p * K_UNIT) + q * (r_q * K_UNIT)
        added = tl.load(residual + at[:, None] + k[None, :], mask=inside, other=0.0)
    u = finish(acc, added, bias, gamma, beta, mean, var, k, K, eps, BIAS, BN, GAMMA, BETA, RESIDUAL, ACTIVATION)
    stored = u.to(y.dtype.element_ty)
    if MOMENTS:
        store_moments(partial, counts, stored, live, tile, k, K)
    at = n * (y_n * K_UNIT) + p * (y_p * K_UNIT) + q * (y_q * K_UNIT)
    tl.store(y + at[:, None] + k[None, :], stored, mask=inside)


def pieces_of(steps: int, splits: int) -> tuple[int, int]:
    """(steps a piece, pieces), none of them empty."""
    each = triton.cdiv(steps, splits)
    return each, triton.cdiv(steps, each)


def splits_of(programs: int, steps: int, multiprocessors: int) -> list[int]:
    """1, and the splits that give idle multiprocessors work: two programs each at most, four steps at least."""
    return [1, *(s for s in (2, 4, 8) if programs * s <= 2 * multiprocessors and steps >= 4 * s)]


def finish_pieces(sums: Tensor, y: Tensor, epilogue: Epilogue, moments: bool) -> Moments | None:
    """Write y [N, K, P, Q] from sums [pieces, N P Q, K] float32; channels of y and of the residual are adjacent."""
    N, K, P, Q = y.shape
    M = N * P * Q
    tiles = triton.cdiv(M, _BLOCK_M)
    found = Moments.of(tiles, K, y.device) if moments else None
    added = y if epilogue.residual is None else epilogue.residual
    strides = [t.stride(d) for t in (y, added) for d in (0, 2, 3)]
    unit = unit_of(K, *strides)
    _finish_pieces[(tiles, triton.cdiv(K, _BLOCK_K))](
        sums, y, added, *epilogue.vectors(sums), *pointers_of(found, sums), M, P, Q, K // unit,
        *(stride // unit for stride in strides), sums.shape[0], epilogue.eps, **epilogue.flags(), MOMENTS=moments,
        K_UNIT=unit, BLOCK_M=_BLOCK_M, BLOCK_K=_BLOCK_K,
    )  # fmt: skip
    return found


@dataclass(frozen=True)
class Stages:
    """Of a product into y [N, K, P, Q]: what its programs write, and what remains to be done with it.

    One program a tile writes y and the tile's moments; several write pieces of its sum, which a second kernel adds.
    """

    y: Tensor
    epilogue: Epilogue
    wants_moments: bool
    each: int  # steps of a program
    pieces: int  # programs a tile
    moments: Moments | None
    sums: Tensor | None  # [pieces, N P Q, K] float32

    @classmethod
    def of(cls, y: Tensor, epilogue: Epilogue, moments: bool, tiles: int, steps: int, splits: int) -> Stages:
        """`tiles` of pixels, each `steps` deep, by `splits` programs."""
        K = y.shape[1]
        each, pieces = pieces_of(steps, splits)
        if splits > 1:
            sums = torch.empty((pieces, y.numel() // K, K), dtype=torch.float32, device=y.device)
            return cls(y, epilogue, moments, each, pieces, None, sums)
        found = Moments.of(tiles, K, y.device) if moments else None
        return cls(y, epilogue, moments, each, pieces, found, None)

    @property
    def _first(self) -> Epilogue:
        return Epilogue() if self.sums is not None else self.epilogue

    def pointers(self, anything: Tensor) -> tuple[Tensor, ...]:
        """The epilogue's vectors, the moments and the sums; `anything` for those that the product will not touch."""
        sums = anything if self.sums is None else self.sums
        return *self._first.vectors(anything), *pointers_of(self.moments, anything), sums

    def flags(self) -> dict[str, bool | str]:
        return {**self._first.flags(), "MOMENTS": self.moments is not None, "SPLIT": self.sums is not None}

    def finish(self) -> Moments | None:
        """The second kernel where there is one; the moments where they are wanted."""
        if self.sums is None:
            return self.moments
        return finish_pieces(self.sums, self.y, self.epilogue, self.wants_moments)
