"""One case: parameters, input bits, and what the output must be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

SM80, SM90 = 80, 90


@dataclass(frozen=True)
class Case:
    """`initial` fills the output before the run. `tolerance` is relative to the largest magnitude of float results:
    0 where every bit counts, more where hardware adds in an order of its own.
    """

    label: str
    name: str
    sm: int
    numbers: tuple[int, ...]
    input: Words
    expected: Words
    initial: Words | None = None
    tolerance: float = 0.0


def difference(case: Case, got: Words) -> str | None:
    """None where `got` is what it must be, else where it first is not."""
    wanted = case.expected
    if case.tolerance:
        a, b = got.view(np.float32).astype(np.float64), wanted.view(np.float32).astype(np.float64)
        wrong = ~(np.abs(a - b) <= case.tolerance * np.abs(b).max())
    else:
        wrong = got != wanted
    if not wrong.any():
        return None
    first = int(np.argmax(wrong))
    return f"{int(wrong.sum())} of {wrong.size} words, first at {first}: {got[first]:#010x}, not {wanted[first]:#010x}"


def random_bits(rng: np.random.Generator, count: int) -> Words:
    return rng.integers(0, 2**32, count, dtype=np.uint32)


def finite(words: Words) -> Words:
    """Neither a word nor a half of it is infinite or NaN as a float."""
    return words & np.uint32(0xBFFFBFFF)
