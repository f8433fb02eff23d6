"""ldmatrix, stmatrix, mma and wgmma."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from conformance import layouts
from conformance.case import SM80, SM90, Case, Words, random_bits

Floats = NDArray[np.float32]
Generator = np.random.Generator
_DEPTH = 16
_ROUNDING = 2.0**-16  # hardware truncates where it aligns products: a few units of the last place of the largest


def cases(rng: Generator) -> Iterator[Case]:
    yield from _ldmatrix(rng)
    yield from _stmatrix(rng)
    yield from _mma(rng)
    yield from _wgmma(rng)


def _rows(rng: Generator, words: int) -> Words:
    """A different 16-byte row for every lane, in words."""
    return (rng.permutation(words // 4)[:32] * 4).astype(np.uint32)


def _ldmatrix(rng: Generator) -> Iterator[Case]:
    for matrices in (2, 4):
        for transpose in (0, 1):
            rows, memory = _rows(rng, 1024), random_bits(rng, 1024)
            halves = memory.view(np.uint16)
            registers = []
            for matrix in range(matrices):
                content = np.stack([halves[2 * row : 2 * row + 8] for row in rows[8 * matrix : 8 * matrix + 8]])
                registers.append(layouts.pairs(content.T if transpose else content))
            label = f"ldmatrix x{matrices}{' trans' if transpose else ''}"
            given, wanted = np.concatenate([rows, memory]), np.stack(registers, 1).ravel()
            yield Case(label, "load_matrices", SM80, (matrices, transpose), given, wanted)


def _stmatrix(rng: Generator) -> Iterator[Case]:
    for matrices, transpose in ((2, 0), (4, 0), (4, 1)):
        rows, registers = _rows(rng, 512), random_bits(rng, 32 * matrices)
        memory = np.zeros(1024, np.uint16)
        for matrix in range(matrices):
            content = np.zeros((8, 8), np.uint16)
            words = registers.reshape(32, matrices)[:, matrix]
            content[layouts.LANES // 4, layouts.LANES % 4 * 2] = words & 0xFFFF
            content[layouts.LANES // 4, layouts.LANES % 4 * 2 + 1] = words >> 16
            for row in range(8):
                start = 2 * rows[8 * matrix + row]
                memory[start : start + 8] = (content.T if transpose else content)[row]
        label = f"stmatrix x{matrices}{' trans' if transpose else ''}"
        given = np.concatenate([rows, registers])
        yield Case(label, "store_matrices", SM90, (matrices, transpose), given, memory.view(np.uint32))


def _integers(rng: Generator, *shape: int) -> Floats:
    """Small ones: their products and sums are exact in any order, so that every bit counts."""
    return rng.integers(-8, 9, shape).astype(np.float32)


def _normal(rng: Generator, *shape: int) -> Floats:
    """Exact in bfloat16, and but for the smallest in float16."""
    bits = rng.standard_normal(shape).astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def _mma(rng: Generator) -> Iterator[Case]:
    blocks = 4
    for number, name in enumerate(("bf16", "fp16", "tf32")):
        for values, draw, tolerance in (("integers", _integers, 0.0), ("normal", _normal, _ROUNDING)):
            given, wanted = [], []
            for _ in range(blocks):
                depth = 8 if name == "tf32" else _DEPTH
                a, b, d = draw(rng, 16, depth), draw(rng, 8, depth), draw(rng, 16, 8)
                operands = _mma_operands(name, a, b)
                if name == "fp16":
                    a, b = a.astype(np.float16).astype(np.float32), b.astype(np.float16).astype(np.float32)
                result = (d + a.astype(np.float64) @ b.T.astype(np.float64)).astype(np.float32)
                given.append(np.concatenate([*operands, layouts.fragment_d(d).view(np.uint32)], 1))
                wanted.append(layouts.fragment_d(result))
            yield Case(
                f"mma {name} {values}",
                "multiply",
                SM80,
                (number, blocks),
                np.concatenate(given).ravel(),
                np.concatenate(wanted).ravel().view(np.uint32),
                tolerance=tolerance,
            )


def _mma_operands(name: str, a: Floats, b: Floats) -> tuple[Words, Words]:
    if name == "tf32":
        return layouts.fragment_a_tf32(a.view(np.uint32)), layouts.fragment_b_tf32(b.view(np.uint32))
    convert = layouts.to_bf16 if name == "bf16" else layouts.to_fp16
    return layouts.fragment_a(convert(a)), layouts.fragment_b(convert(b))


# type (bf16, fp16), N, swizzle, A in registers, transpose A, transpose B, accumulate; as in conformance_sm90.cu
_WGMMA = (
    *((kind, 64, 3, 0, 0, 0, 1) for kind in (0, 1)),
    *((0, 64, swizzle, 0, 0, 0, 1) for swizzle in (2, 1, 0)),
    *((0, N, 3, 0, 0, 0, 1) for N in (96, 128, 160, 192, 224, 248, 256)),
    (0, 64, 3, 1, 0, 0, 1),
    (1, 64, 3, 1, 0, 0, 1),
    (0, 128, 3, 1, 0, 0, 0),
    (0, 64, 3, 0, 1, 0, 1),
    (0, 64, 3, 0, 0, 1, 1),
    (0, 128, 3, 0, 1, 1, 0),
)


def _wgmma(rng: Generator) -> Iterator[Case]:
    for key in _WGMMA:
        yield _one_wgmma(rng, key, _integers, 0.0)
    yield _one_wgmma(rng, (0, 64, 3, 0, 0, 0, 1), _normal, _ROUNDING)
    for first_row in (1, 7, 21):
        yield _wgmma_of_rows(rng, first_row)


def _one_wgmma(rng: Generator, key: Sequence[int], draw: Callable[..., Floats], tolerance: float) -> Case:
    kind, N, mode, in_registers, transpose_a, transpose_b, accumulate = key
    a, b, d = draw(rng, 64, _DEPTH), draw(rng, N, _DEPTH), draw(rng, 64, N)
    convert = layouts.to_fp16 if kind else layouts.to_bf16
    a_image, *a_strides = layouts.mn_major(convert(a)) if transpose_a else layouts.k_major(convert(a), mode)
    b_image, *b_strides = layouts.mn_major(convert(b)) if transpose_b else layouts.k_major(convert(b), mode)
    offset_b = math.ceil(a_image.size / 1024) * 1024
    image = np.zeros(offset_b + b_image.size, np.uint8)
    image[: a_image.size] = a_image
    image[offset_b:] = b_image
    parts = [image.view(np.uint32)]
    if in_registers:
        parts += [layouts.fragment_a(convert(a)[row : row + 16]).ravel() for row in range(0, 64, 16)]
    parts.append(layouts.fragment_wgmma(d).ravel().view(np.uint32))
    product = a.astype(np.float64) @ b.T.astype(np.float64)
    result = (product + d if accumulate else product).astype(np.float32)
    source = "registers" if in_registers else "shared"
    majors = f"{'M' if transpose_a else 'K'} and {'N' if transpose_b else 'K'} adjacent"
    values = "normal" if tolerance else "integers"
    return Case(
        f"wgmma {'fp16' if kind else 'bf16'} n{N} swizzle {layouts.SPANS[mode]} A in {source} {majors} {values}",
        "wgmma",
        SM90,
        (*key, image.size // 4, offset_b, *a_strides, *b_strides),
        np.concatenate(parts),
        layouts.fragment_wgmma(result).ravel().view(np.uint32),
        tolerance=tolerance,
    )


def _wgmma_of_rows(rng: Generator, first_row: int) -> Case:
    """64 rows of A from any row on, as the taps of an intermediate in shared memory see it."""
    rows, N = 90, 64
    a, b = _integers(rng, rows, _DEPTH), _integers(rng, N, _DEPTH)
    a_image, leading = layouts.columns_of_rows(layouts.to_bf16(a))
    b_image, *_ = layouts.k_major(layouts.to_bf16(b), 3)
    offset_b = math.ceil(a_image.size / 1024) * 1024
    image = np.zeros(offset_b + b_image.size, np.uint8)
    image[: a_image.size] = a_image
    image[offset_b:] = b_image
    result = (a[first_row : first_row + 64].astype(np.float64) @ b.T.astype(np.float64)).astype(np.float32)
    return Case(
        f"wgmma bf16 n64, A from row {first_row} of {rows}",
        "wgmma_rows",
        SM90,
        (image.size // 4, 16 * first_row, leading, offset_b),
        image.view(np.uint32),
        layouts.fragment_wgmma(result).ravel().view(np.uint32),
    )
