"""cp.async, TMA tiles and im2col, bulk copies and clusters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from conformance import layouts
from conformance.case import SM80, SM90, Case, Words, finite, random_bits

Generator = np.random.Generator


def cases(rng: Generator) -> Iterator[Case]:
    yield from _cp_async(rng)
    yield from _tiles(rng)
    yield from _im2col(rng)
    yield from _bulk(rng)


def _cp_async(rng: Generator) -> Iterator[Case]:
    for size in (4, 8, 16):
        bytes_ = rng.integers(0, size // 4 + 1, 32).astype(np.uint32) * 4
        data = random_bits(rng, 128)
        wanted = np.full((32, 4), 0xFFFFFFFF, np.uint32)
        for lane in range(32):
            given = int(bytes_[lane]) // 4
            wanted[lane, : size // 4] = 0
            wanted[lane, :given] = data.reshape(32, 4)[lane, :given]
        yield Case(f"cp.async {size}", "copy_async", SM80, (size,), np.concatenate([bytes_, data]), wanted.ravel())


# sizes, box, steps, coordinates (the innermost dimension first, bfloat16) and the swizzle mode
_TILES: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int], ...] = (
    ((64, 24), (64, 16), (1, 1), (0, 3), 3),
    ((64, 24), (32, 16), (1, 1), (32, 16), 2),
    ((64, 24), (16, 16), (1, 1), (56, -5), 1),
    ((64, 24), (64, 16), (1, 1), (-8, -2), 0),
    ((40, 9, 3), (64, 4, 2), (1, 1, 1), (0, -1, 2), 3),
    ((64, 9, 7, 2), (64, 5, 4, 1), (1, 1, 1, 1), (0, -1, -2, 1), 3),
    ((64, 9, 7, 2), (64, 7, 5, 1), (1, 2, 2, 1), (0, -1, -1, 1), 3),
    ((16, 5, 4, 3, 2), (16, 3, 2, 2, 2), (1, 1, 1, 1, 1), (0, 3, -1, 2, 0), 0),
)


def _tiles(rng: Generator) -> Iterator[Case]:
    for sizes, box, steps, at, mode in _TILES:
        tensor = rng.integers(0, 2**16, math.prod(sizes), dtype=np.uint16)
        label = f"{'x'.join(map(str, sizes))} box {'x'.join(map(str, box))} at {at} swizzle {layouts.SPANS[mode]}"
        if any(step > 1 for step in steps):
            label += f" steps {steps}"
        tile, _ = _gather(tensor, sizes, box, steps, at)
        numbers = _tile_numbers(sizes, box, steps, at, mode, tile.size)
        yield Case(f"tma load {label}", "load_tile", SM90, numbers, tensor.view(np.uint32), _tile_image(tile, mode))
        if mode == 3 and len(sizes) == 2:
            yield _multicast(tensor, sizes, box)
        if len(sizes) < 5 and all(step == 1 for step in steps):
            yield _store(rng, label, sizes, box, at, mode)


def _multicast(tensor: NDArray[np.uint16], sizes: Sequence[int], box: Sequence[int]) -> Case:
    origin, steps = (0, 0), (1, 1)
    tile, _ = _gather(tensor, sizes, box, steps, origin)
    numbers = _tile_numbers(sizes, box, steps, origin, 3, tile.size)
    both = np.tile(_tile_image(tile, 3), 2)
    return Case("tma multicast to two blocks", "load_for_all", SM90, numbers, tensor.view(np.uint32), both)


def _store(rng: Generator, label: str, sizes: Sequence[int], box: Sequence[int], at: Sequence[int], mode: int) -> Case:
    initial = rng.integers(0, 2**16, math.prod(sizes), dtype=np.uint16)
    values = rng.integers(0, 2**16, math.prod(box), dtype=np.uint16)
    steps = [1] * len(sizes)
    _, places = _gather(initial, sizes, box, steps, at)
    inside = places.ravel() >= 0
    wanted = initial.copy()
    wanted[places.ravel()[inside]] = values[inside]
    numbers = _tile_numbers(sizes, box, steps, at, mode, values.size)
    given = _tile_image(values, mode)
    words = (wanted.view(np.uint32), initial.view(np.uint32))
    return Case(f"tma store {label}", "store_tile", SM90, numbers, given, *words)


def _tile_numbers(
    sizes: Sequence[int], box: Sequence[int], steps: Sequence[int], at: Sequence[int], mode: int, elements: int
) -> tuple[int, ...]:
    strides = [math.prod(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return (len(sizes), mode, elements // 2, *sizes, *strides, *box, *steps, *at)


def _gather(
    tensor: NDArray[np.uint16], sizes: Sequence[int], box: Sequence[int], steps: Sequence[int], at: Sequence[int]
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """The tile, outermost dimension first, zero outside of the tensor; and its element numbers, -1 outside."""
    shape = [-(-length // step) for length, step in zip(box, steps, strict=True)]
    index = np.indices(list(reversed(shape)))[::-1]  # innermost first
    places = np.zeros(index[0].shape, np.int64)
    inside = np.ones(index[0].shape, bool)
    stride = 1
    for dimension, size in enumerate(sizes):
        coordinate = at[dimension] + index[dimension] * steps[dimension]
        inside &= (coordinate >= 0) & (coordinate < size)
        places += coordinate * stride
        stride *= size
    places = np.where(inside, places, -1)
    return np.where(inside, tensor[np.maximum(places, 0)], 0).astype(np.uint16), places


def _tile_image(values: NDArray[np.uint16], mode: int) -> Words:
    """As it lies in shared memory, swizzled."""
    offset = layouts.swizzled(np.arange(values.size, dtype=np.int64) * 2, mode)
    image = np.zeros(values.size, np.uint16)
    image[offset // 2] = values.ravel()
    return image.view(np.uint32)


# N, H, W, C, R, S, stride, padding (h, w), dilation, channels, pixels, swizzle mode; the first channel, the first
# output pixel (n, p, q) and the tap (r, s)
_IM2COL = (
    ((2, 7, 9, 64, 3, 3, 1, 1, 1, 1, 64, 16, 3), 0, (0, 2, 5), (0, 2)),
    ((2, 7, 9, 64, 3, 3, 1, 1, 1, 1, 64, 64, 3), 0, (0, 5, 1), (2, 0)),
    ((2, 7, 9, 96, 3, 3, 2, 0, 0, 1, 64, 16, 3), 64, (0, 1, 1), (1, 2)),
    ((3, 5, 17, 64, 1, 7, 1, 0, 3, 1, 64, 32, 3), 0, (0, 2, 9), (0, 6)),
    ((2, 11, 11, 32, 3, 3, 1, 2, 2, 2, 32, 24, 2), 0, (1, 0, 3), (1, 0)),
)


def _im2col(rng: Generator) -> Iterator[Case]:
    for sizes, c, (n, p, q), (r, s) in _IM2COL:
        N, H, W, C, R, S, stride, pad_h, pad_w, dilation, channels, pixels, mode = sizes
        x = rng.integers(0, 2**16, (N, H, W, C), dtype=np.uint16)
        P = (H + 2 * pad_h - dilation * (R - 1) - 1) // stride + 1
        Q = (W + 2 * pad_w - dilation * (S - 1) - 1) // stride + 1
        tile = np.zeros((pixels, channels), np.uint16)
        for i in range(pixels):
            number = (n * P + p) * Q + q + i
            image, row, column = number // (P * Q), number // Q % P, number % Q
            h, w = row * stride - pad_h + r * dilation, column * stride - pad_w + s * dilation
            if image < N and 0 <= h < H and 0 <= w < W:
                part = x[image, h, w, c : c + channels]
                tile[i, : part.size] = part
        numbers = (*sizes, c, q * stride - pad_w, p * stride - pad_h, n, s * dilation, r * dilation)
        label = f"tma im2col {N}x{H}x{W}x{C} {R}x{S} stride {stride} padding {pad_h},{pad_w} dilation {dilation} tap {r},{s}"
        yield Case(label, "im2col", SM90, numbers, x.ravel().view(np.uint32), _tile_image(tile, mode))


def _bulk(rng: Generator) -> Iterator[Case]:
    data = random_bits(rng, 256)
    yield Case("bulk load", "load_bulk", SM90, (), data, data)
    pair = finite(random_bits(rng, 512))
    remote = np.concatenate([pair[256:288], pair[:32]])
    yield Case("cluster", "pass_on", SM90, (), pair, np.concatenate([pair[256:], pair[:256], remote]))
