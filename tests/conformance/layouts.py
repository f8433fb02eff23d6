"""How operands lie in registers and in shared memory, in plain numpy: written from the instruction set's manual."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint16]
SPANS = {0: 16, 1: 32, 2: 64, 3: 128}  # bytes that the swizzle modes none, 32, 64 and 128 permute within
LANES = np.arange(32)


def to_bf16(values: NDArray[np.float32]) -> Bits:
    """The upper halves: values must be exact in bfloat16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any(), "not exact in bfloat16"
    return (bits >> 16).astype(np.uint16)


def from_bf16(bits: Bits) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_fp16(values: NDArray[np.float32]) -> Bits:
    return values.astype(np.float16).view(np.uint16)


def swizzled(offset: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
    """Byte offsets under a swizzle: the number of the 128-byte row flips bits of the 16-byte chunk's number."""
    mask = (1 << mode) - 1
    return offset ^ (((offset >> 7) & mask) << 4)


def k_major(matrix: Bits, mode: int) -> tuple[NDArray[np.uint8], int, int]:
    """[rows, K] with K adjacent: bytes, and the descriptor's leading and stride bytes."""
    rows, depth = matrix.shape
    row, column = np.indices((rows, depth))
    if mode == 0:  # 8 rows x 16 bytes contiguous; then along K, then the next 8 rows
        leading, stride = 128, depth // 8 * 128
        offset = row // 8 * stride + column // 8 * leading + row % 8 * 16 + column % 8 * 2
        return _scatter(matrix, offset, rows * depth * 2), leading, stride
    span = SPANS[mode]
    assert depth * 2 <= span
    return _scatter(matrix, swizzled(row * span + column * 2, mode), rows * span), 16, 8 * span


def columns_of_rows(matrix: Bits) -> tuple[NDArray[np.uint8], int]:
    """[rows, K] as 16 bytes of every row, then the next 16 of every row: bytes, and the descriptor's leading bytes."""
    rows, depth = matrix.shape
    row, column = np.indices((rows, depth))
    offset = column // 8 * rows * 16 + row * 16 + column % 8 * 2
    return _scatter(matrix, offset, rows * depth * 2), rows * 16


def mn_major(matrix: Bits) -> tuple[NDArray[np.uint8], int, int]:
    """[rows, K] with rows adjacent, 128-byte swizzle: spans of 64 rows x 8 of K, the next 8 of K, then the next span."""
    rows, depth = matrix.shape
    per_span = 64
    stride = 8 * 128  # to the next 8 of K
    leading = depth // 8 * stride  # to the next 64 rows
    row, column = np.indices((rows, depth))
    within = swizzled(column % 8 * 128 + row % per_span * 2, 3)
    offset = row // per_span * leading + column // 8 * stride + within
    return _scatter(matrix, offset, -(-rows // per_span) * leading), leading, stride


def _scatter(matrix: Bits, offset: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    image = np.zeros(size // 2, np.uint16)
    image[offset.ravel() // 2] = matrix.ravel()
    return image.view(np.uint8)


def pairs(matrix: Bits, row: int = 0, column: int = 0) -> NDArray[np.uint32]:
    """The 8 x 8 part from (row, column) on as one register of each lane: two neighbours of row lane // 4."""
    rows, columns = row + LANES // 4, column + LANES % 4 * 2
    low, high = matrix[rows, columns], matrix[rows, columns + 1]
    return low.astype(np.uint32) | high.astype(np.uint32) << 16


def fragment_a(matrix: Bits) -> NDArray[np.uint32]:
    """[16, 16] 16-bit elements as the 4 registers of each of 32 lanes."""
    return np.stack([pairs(matrix, row, column) for row, column in ((0, 0), (8, 0), (0, 8), (8, 8))], 1)


def fragment_b(matrix: Bits) -> NDArray[np.uint32]:
    """[8 columns, 16 of K] as the 2 registers of each lane."""
    return np.stack([pairs(matrix, 0, k) for k in (0, 8)], 1)


def fragment_a_tf32(matrix: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """[16, 8]."""
    places = ((0, 0), (8, 0), (0, 4), (8, 4))
    return np.stack([matrix[LANES // 4 + row, LANES % 4 + column] for row, column in places], 1)


def fragment_b_tf32(matrix: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """[8 columns, 8 of K]."""
    return np.stack([matrix[LANES // 4, LANES % 4 + k] for k in (0, 4)], 1)


def fragment_d(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """[16, 8] as the 4 accumulators of each lane."""
    places = ((0, 0), (0, 1), (8, 0), (8, 1))
    return np.stack([matrix[LANES // 4 + row, LANES % 4 * 2 + column] for row, column in places], 1)


def fragment_wgmma(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """[64, N] as the N / 2 accumulators of each of 128 threads."""
    warps = [matrix[row : row + 16] for row in range(0, 64, 16)]
    columns = range(0, matrix.shape[1], 8)
    return np.concatenate([np.concatenate([fragment_d(warp[:, n : n + 8]) for n in columns], 1) for warp in warps])
