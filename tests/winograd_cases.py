"""What the tests of Winograd's algorithm share, forward and in gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
PLAIN: dict[str, Any] = dict(bn=False, activation="none")
CONV: dict[str, Any] = dict(window=(3, 3), padding=1, **PLAIN)

# By dtype, the windows that are computed by the algorithm; in float32 those with the least channels for large blocks.
WIDE = [("f32", (3, 3))]
LARGE = [("f32", (3, 3), 64), ("f32", (5, 5), 32), ("f32", (1, 7), 128), ("f32", (7, 1), 128)]
NARROW = [(dtype, window) for dtype in ("bf16", "f16") for window in [(3, 3), (5, 5), (1, 7), (7, 1)]]
# Every kind of blocks, with an odd number of channels that it takes.
BLOCKS = [*((dtype, window, 17) for dtype, window in (*WIDE, *NARROW)), *((*case, least + 1) for *case, least in LARGE)]

# Changes to CONV, and whether the algorithm still computes it.
CHANGES: list[tuple[dict[str, Any], bool]] = [
    (dict(), True),
    (dict(dtype=torch.bfloat16), True),
    (dict(dtype=torch.float16), True),
    (dict(dtype=torch.float64), False),
    (dict(stride=2), False),
    (dict(stride=(1, 2)), False),
    (dict(stride=(2, 1)), False),
    (dict(dilation=2), False),
    (dict(dilation=(1, 2)), False),
    (dict(window=(3, 5)), False),
    (dict(window=(5, 3)), False),
    (dict(window=(1, 3), padding=(0, 1)), False),
    (dict(window=(3, 1), padding=(1, 0)), False),
    (dict(window=(5, 5), padding=2), False),
    (dict(window=(1, 7), padding=(0, 3)), False),
    (dict(window=(7, 1), padding=(3, 0)), False),
    (dict(C=15), False),
    (dict(K=15), False),
    (dict(C=256, K=256), True),
    (dict(C=256, K=257), False),  # transformed weights, or their sums, of more than 4 MiB
]
# Of PLAIN in float32, and of images so large that float32 has no more accurate way for them.
LARGE_CHANGES: list[tuple[dict[str, Any], bool]] = [
    (dict(window=(5, 5), padding=2, C=31), False),
    (dict(window=(5, 5), padding=2, C=32), True),
    (dict(window=(5, 5), padding=2, C=32, K=15), False),
    (dict(window=(5, 5), padding=2, C=256), True),
    (dict(window=(5, 5), padding=2, C=257), False),
    (dict(window=(5, 5), padding=2, C=256, K=257), False),
    (dict(window=(1, 7), padding=(0, 3), C=127), False),
    (dict(window=(1, 7), padding=(0, 3), C=128), True),
    (dict(window=(1, 7), padding=(0, 3), C=257), False),
    (dict(window=(7, 1), padding=(3, 0), C=127), False),
    (dict(window=(7, 1), padding=(3, 0), C=128), True),
    (dict(window=(7, 1), padding=(3, 0), C=128, dilation=(1, 2)), True),  # of a direction with one tap
    (dict(window=(7, 1), padding=(6, 0), C=128, dilation=(2, 1)), False),
    (dict(window=(7, 1), padding=(3, 0), C=128, stride=(1, 2)), False),
    (dict(window=(1, 7), padding=(0, 3), C=128, K=513), False),
    (dict(window=(7, 1), padding=(3, 0), C=128, K=513), False),
    (dict(window=(7, 7), padding=3, C=128), False),
]
# Of PLAIN in 16 bits.
NARROW_CHANGES: list[tuple[dict[str, Any], bool]] = [
    (dict(window=(5, 5), padding=2), True),
    (dict(window=(5, 5), padding=2, C=128, K=129), False),
    (dict(window=(1, 7), padding=(0, 3)), True),
    (dict(window=(7, 1), padding=(3, 0)), True),
    (dict(window=(1, 7), padding=(0, 3), dilation=(2, 1)), True),  # of a direction with one tap
    (dict(window=(1, 7), padding=(0, 6), dilation=(1, 2)), False),
    (dict(window=(1, 7), padding=(0, 3), stride=(2, 1)), False),
    (dict(window=(7, 1), padding=(3, 0), stride=(1, 2)), False),
    (dict(window=(7, 7), padding=3), False),
    (dict(window=(1, 5), padding=(0, 2)), False),
    (dict(window=(1, 7), padding=(0, 3), C=256, K=257), False),
    (dict(window=(7, 1), padding=(3, 0), C=256, K=257), False),
]


def same_padding(window: tuple[int, int]) -> tuple[int, int]:
    return window[0] // 2, window[1] // 2


def with_threads(compute: Callable[[], T]) -> list[T]:
    """Its results with one thread and with several, also more than there are cores."""
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(compute())
        return results
    finally:
        torch.set_num_threads(before)
