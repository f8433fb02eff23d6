"""Pairs of 16-bit numbers, conversions, shuffles and votes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from conformance import layouts
from conformance.case import SM80, SM90, Case, Words, finite, random_bits

Generator = np.random.Generator
Doubles = NDArray[np.float64]


def cases(rng: Generator) -> Iterator[Case]:
    yield _exchange(rng)
    yield Case("elect", "elect", SM90, (), np.zeros(1, np.uint32), np.ones(32, np.uint32))
    blocks = 8
    words = finite(random_bits(rng, 3 * 32 * blocks))
    a, b, c = (np.ascontiguousarray(part) for part in words.reshape(-1, 3).T)
    with np.errstate(over="ignore"):
        wanted = np.concatenate(_results(a, b, c))
    yield Case("arithmetic", "arithmetic", SM80, (blocks,), words, wanted)


def _exchange(rng: Generator) -> Case:
    v, lane = random_bits(rng, 32), np.arange(32)
    down = np.where(lane + 7 < 32, lane + 7, lane)
    up = np.where(lane - 3 >= 0, lane - 3, lane)
    down_of_8 = np.where(lane % 8 + 2 < 8, lane + 2, lane)
    sources = (lane ^ 5, lane ^ 1, lane // 4, lane // 8 * 8 + 3, down, up, down_of_8)
    ballot = np.full(32, sum(int(word & 1) << i for i, word in enumerate(v)), np.uint32)
    return Case("shuffles", "exchange", SM80, (), v, np.concatenate([*(v[source] for source in sources), ballot]))


def _results(a: Words, b: Words, c: Words) -> list[Words]:
    """In the order of `arithmetic` in conformance.cu."""
    bf16 = [layouts.from_bf16(word.view(np.uint16)).astype(np.float64) for word in (a, b, c)]
    fp16 = [word.view(np.float16).astype(np.float64) for word in (a, b, c)]
    singles = np.stack([a.view(np.float32), b.view(np.float32)], 1).astype(np.float64).ravel()
    halves = a.view(np.float16).astype(np.float32).view(np.uint32)
    return [
        _to_bf16(np.maximum(bf16[0], bf16[1])),
        _to_fp16(np.maximum(fp16[0], fp16[1])),
        _to_bf16(np.maximum(bf16[0], 0.0) + 0.0),
        _to_fp16(np.maximum(fp16[0], 0.0) + 0.0),
        _to_bf16(bf16[0] * bf16[1] + bf16[2]),
        _to_fp16(fp16[0] * fp16[1] + fp16[2]),
        ((a.astype(np.uint64) + 0x1000) & 0xFFFFE000).astype(np.uint32),
        _to_bf16(singles),
        _to_fp16(singles),
        a,
        halves[0::2].copy(),
        halves[1::2].copy(),
    ]


def _to_bf16(values: Doubles) -> Words:
    """Rounded once, to nearest with ties to even: through a float32 rounded to odd, which keeps what decides a tie."""
    single = values.astype(np.float32)
    bits, back = single.view(np.uint32), single.astype(np.float64)
    inexact = back != values
    outwards = inexact & (np.abs(back) > np.abs(values))
    odd = np.where(inexact, (bits - outwards) | 1, bits).astype(np.uint32)
    return ((odd + 0x7FFF + ((odd >> 16) & 1)) >> 16).astype(np.uint16).view(np.uint32)


def _to_fp16(values: Doubles) -> Words:
    return values.astype(np.float16).view(np.uint32)
