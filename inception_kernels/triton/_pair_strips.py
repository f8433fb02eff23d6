"""asymmetric_pair in one kernel: the intermediate of a strip of the image never leaves the chip.

The second window crosses one dimension only, `a`; a strip is WIDTH neighbours in the other, `b`, and all of `a`. The
rows of a tile are the strip's pixels, a-major. A chunk of the intermediate's channels at a time is computed, goes
through its batch norm and activation, and is multiplied at once with the taps of the second window, for each of which
its rows are gathered from their new places; the last row is always zero, and is what padding reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._convolution import pixel_strides
from ._device import advance, unit_of
from ._epilogue import Epilogue, finish
from ._roofline import Overlap, Work
from .runtime import Device

Pair = tuple[int, int]


@triton.jit(
    do_not_specialize=[
        "X_A", "X_B", "C", "MID_A", "M", "OUT_A", "OUT_B", "K", "x_n", "x_a", "x_b", "y_n", "y_a", "y_b", "WIDTH",
        "STRIPS", "TAPS_A", "TAPS_B", "STRIDE_A", "STRIDE_B", "PAD_A", "PAD_B", "TAPS2", "STRIDE2", "PAD2",
    ]
)  # fmt: skip
def pair_strips(
    x, weight1, weight2, y, bias1, gamma1, beta1, mean1, var1, bias2, gamma2, beta2, mean2, var2,
    X_A, X_B, C, MID_A, M, OUT_A, OUT_B, K, x_n, x_a, x_b, y_n, y_a, y_b, WIDTH, STRIPS, TAPS_A, TAPS_B, STRIDE_A,
    STRIDE_B, PAD_A, PAD_B, TAPS2, STRIDE2, PAD2, eps,
    C_UNIT: tl.constexpr, M_UNIT: tl.constexpr, K_UNIT: tl.constexpr, BIAS1: tl.constexpr, BN1: tl.constexpr,
    GAMMA1: tl.constexpr, BETA1: tl.constexpr, ACTIVATION1: tl.constexpr, BIAS2: tl.constexpr, BN2: tl.constexpr,
    GAMMA2: tl.constexpr, BETA2: tl.constexpr, ACTIVATION2: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_MID: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x [N, C, a, b] with adjacent channels; weight1 [TAPS_A TAPS_B, M, C], weight2 [TAPS2, K, M]; y [N, K, a, b]."""
    C = C * C_UNIT
    M = M * M_UNIT
    K = K * K_UNIT
    x_a = (x_a * C_UNIT).to(tl.int64)
    x_b = (x_b * C_UNIT).to(tl.int64)
    n = (tl.program_id(0) // STRIPS).to(tl.int64)
    row = tl.arange(0, ROWS)
    a = row // WIDTH
    within = row % WIDTH
    b = tl.program_id(0) % STRIPS * WIDTH + within
    is_mid = (a < MID_A) & (b < OUT_B)
    is_out = (a < OUT_A) & (b < OUT_B)
    a0 = a * STRIDE_A - PAD_A
    b0 = b * STRIDE_B - PAD_B
    image = x + n * (x_n * C_UNIT)
    c = tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_K)
    chunks = tl.cdiv(C, BLOCK_C)
    acc = tl.zeros((ROWS, BLOCK_K), tl.float32)
    for first_mid in range(0, M, BLOCK_MID):
        m = first_mid + tl.arange(0, BLOCK_MID)
        mid = tl.zeros((ROWS, BLOCK_MID), tl.float32)
        ta = 0 * chunks
        tb = 0 * chunks
        first = 0 * chunks
        tl.assume(TAPS_A * TAPS_B * chunks > 0)
        for _ in range(TAPS_A * TAPS_B * chunks):
            at_a = a0 + ta
            at_b = b0 + tb
            ok = is_mid & (at_a >= 0) & (at_a < X_A) & (at_b >= 0) & (at_b < X_B)
            inside = first + c < C
            pixels = tl.load(
                (image + at_a * x_a + at_b * x_b)[:, None] + (first + c)[None, :],
                mask=ok[:, None] & inside[None, :], other=0.0,
            )  # fmt: skip
            tap = weight1 + (ta * TAPS_B + tb).to(tl.int64) * M * C
            w = tl.load(
                tap + (m * C)[None, :] + (first + c)[:, None], mask=inside[:, None] & (m < M)[None, :], other=0.0
            )
            mid = tl.dot(pixels, w, mid)
            first, tb, ta = advance(first, tb, ta, BLOCK_C, C, TAPS_B)
        mid = finish(
            mid, mid, bias1, gamma1, beta1, mean1, var1, m, M, eps, BIAS1, BN1, GAMMA1, BETA1, False, ACTIVATION1
        )
        chunk = tl.where(is_mid[:, None] & (m < M)[None, :], mid, 0.0).to(x.dtype.element_ty)
        tl.assume(TAPS2 > 0)
        for t in range(TAPS2):
            source = a * STRIDE2 - PAD2 + t
            ok = is_out & (source >= 0) & (source < MID_A)
            at = tl.where(ok, source * WIDTH + within, ROWS - 1)
            shifted = tl.gather(chunk, tl.broadcast_to(at[:, None], (ROWS, BLOCK_MID)), axis=0)
            w = tl.load(
                weight2 + (k.to(tl.int64) * M)[None, :] + m[:, None], mask=(m < M)[:, None] & (k < K)[None, :],
                other=0.0,
            )  # fmt: skip
            acc = tl.dot(shifted, w, acc)
            weight2 += K * M
        weight2 -= TAPS2 * K * M
    u = finish(acc, acc, bias2, gamma2, beta2, mean2, var2, k, K, eps, BIAS2, BN2, GAMMA2, BETA2, False, ACTIVATION2)
    at = n * (y_n * K_UNIT) + a * (y_a * K_UNIT).to(tl.int64) + b * (y_b * K_UNIT)
    tl.store(y + at[:, None] + k[None, :], u.to(y.dtype.element_ty), mask=is_out[:, None] & (k < K)[None, :])


@dataclass(frozen=True)
class Strips:
    """A program: `width` neighbours of one image in `rows` rows, k outputs; chunks of `mid` and of c channels."""

    width: int
    rows: int
    k: int
    mid: int
    c: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Sizes:
    """Of a pair, (height, width) throughout: x, the intermediate, y, the windows, strides and paddings."""

    x: Pair
    mid: Pair
    y: Pair
    window1: Pair
    window2: Pair
    stride1: Pair
    stride2: Pair
    padding1: Pair
    padding2: Pair

    @property
    def along(self) -> int | None:
        """The dimension that the second window crosses; None where it is not one alone."""
        for a, b in ((0, 1), (1, 0)):
            if self.window2[b] == 1 and self.stride2[b] == 1 and self.padding2[b] == 0:
                return a
        return None


_ROWS = 64
_MAX_OUTPUTS = 256


def configurations(C: int, M: int, K: int, sizes: Sizes, dtype: torch.dtype, device: Device) -> list[Strips]:
    """Every program that may be chosen; none where a strip of one does not fit into a tile."""
    a = sizes.along
    if a is None or K > _MAX_OUTPUTS or dtype not in (torch.bfloat16, torch.float16):
        return []
    k = max(16, triton.next_power_of_2(K))
    c = 64 if C > 32 else 32 if C > 16 else 16
    mid = 16 if M <= 16 else 32 if M <= 32 or k == 256 else 64  # more spills
    width = min((_ROWS - 1) // max(sizes.mid[a], sizes.y[a]), sizes.y[1 - a])  # one row stays zero
    return [
        Strips(width, _ROWS, k, mid, c, 8 if k > 64 else 4, stages)
        for stages in (2, 3)
        if width and 2 * (stages * (max(_ROWS + mid, k) * c + k * mid) + _ROWS * mid) <= device.shared
    ]


# Of a warp, per element and tap of the second window, counted in the compiled kernels: 0.45, but shared memory, through
# which rows find their new places, is busy for as long as these would take.
_GATHER_INSTRUCTIONS = 0.7


def work(strips: Strips, N: int, C: int, M: int, K: int, sizes: Sizes, itemsize: int) -> Work:
    """Counts of the launch."""
    a = sizes.along
    assert a is not None
    programs = N * triton.cdiv(sizes.y[1 - a], strips.width)
    mid = triton.cdiv(M, strips.mid) * strips.mid
    first = sizes.window1[0] * sizes.window1[1] * triton.cdiv(C, strips.c) * strips.c
    pixels = programs * strips.rows
    return Work(
        memory=itemsize * N * (sizes.x[0] * sizes.x[1] * C + sizes.y[0] * sizes.y[1] * K),
        products=pixels * mid * (first + sizes.window2[a] * strips.k),
        instructions=pixels * mid * sizes.window2[a] * _GATHER_INSTRUCTIONS,
        programs=programs,
        overlap=Overlap.MEMORY,
    )


def convolve_pair(
    x: Tensor, weight1: Tensor, weight2: Tensor, y: Tensor, first: Epilogue, second: Epilogue, sizes: Sizes,
    strips: Strips,
) -> None:  # fmt: skip
    """Write y [N, K, P, Q] from x [N, C, H, W], channels adjacent in both; weights [M, C, R, S] and [K, M, R, S]."""
    a = sizes.along
    assert a is not None
    b = 1 - a
    M, C = weight1.shape[:2]
    K = weight2.shape[0]
    # Taps in the order (a, b), input channels adjacent.
    packed1 = weight1.permute(2 + a, 2 + b, 0, 1).contiguous()
    packed2 = weight2.permute(2 + a, 2 + b, 0, 1).contiguous()
    x_strides, y_strides = pixel_strides(x), pixel_strides(y)
    c_unit, m_unit, k_unit = unit_of(C, *x_strides), unit_of(M), unit_of(K, *y_strides)
    count = triton.cdiv(sizes.y[b], strips.width)
    flags = {
        f"{name}{i}": value
        for i, epilogue in ((1, first), (2, second))
        for name, value in epilogue.flags().items()
        if name != "RESIDUAL"
    }
    pair_strips[(x.shape[0] * count,)](
        x, packed1, packed2, y, *first.vectors(packed1), *second.vectors(packed1),
        sizes.x[a], sizes.x[b], C // c_unit, sizes.mid[a], M // m_unit, sizes.y[a], sizes.y[b], K // k_unit,
        *(x_strides[i] // c_unit for i in (0, 1 + a, 1 + b)), *(y_strides[i] // k_unit for i in (0, 1 + a, 1 + b)),
        strips.width, count, sizes.window1[a], sizes.window1[b], sizes.stride1[a], sizes.stride1[b],
        sizes.padding1[a], sizes.padding1[b], sizes.window2[a], sizes.stride2[a], sizes.padding2[a], first.eps,
        C_UNIT=c_unit, M_UNIT=m_unit, K_UNIT=k_unit, **flags, ROWS=strips.rows, BLOCK_K=strips.k, BLOCK_MID=strips.mid,
        BLOCK_C=strips.c, num_warps=strips.warps, num_stages=strips.stages,
    )  # fmt: skip
