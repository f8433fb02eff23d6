"""The implicit product by tensor descriptors (TMA): stride 1, any window, padding and dilation, 16-bit types.

Every operand is a box of a descriptor, so the loop has neither masks nor address arithmetic: a tap is a shifted box
and the zero fill of boxes that leave the image is the padding. A tile's rows are BLOCK_M images at one pixel, or a
patch of BLOCK_H x BLOCK_W pixels of one image. Only leading unit dimensions of a box fold away (any other sends the
operand through registers), which is why the two orders of dimensions exist.

BLOCK_K0 + BLOCK_K1 outputs: two accumulators share the pixels' operand, so that 192 = 128 + 64 wastes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import tuning
from ._convolution import GROUP, tile_order
from ._device import advance
from ._epilogue import Epilogue, Moments, finish, store_moments
from ._roofline import LAUNCH_CLOCKS, TILE_CLOCKS, step_clocks
from ._split import Stages, pieces_of, splits_of
from .runtime import Device, device_of


@triton.jit
def _box(descriptor, n, h, w, c, IMAGES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    box = descriptor.load([h, w, n, c]) if IMAGES else descriptor.load([n, h, w, c])
    return box.reshape(BLOCK_M, BLOCK_C)


@triton.jit
def _finish(
    acc, y, residual, bias, gamma, beta, mean, var, partial, counts, tile, n0, h0, w0, k0, N, P, Q, K, eps,
    BIAS: tl.constexpr, BN: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr, RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr, MOMENTS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    k = k0 + tl.arange(0, BLOCK_K)
    added = acc
    if RESIDUAL:
        added = _box(residual, n0, h0, w0, k0, IMAGES, BLOCK_M, BLOCK_K)
    u = finish(acc, added, bias, gamma, beta, mean, var, k, K, eps, BIAS, BN, GAMMA, BETA, RESIDUAL, ACTIVATION)
    stored = u.to(y.dtype)
    if MOMENTS:
        n, p, q = _rows(n0, h0, w0, IMAGES, BLOCK_M, BLOCK_W)
        store_moments(partial, counts, stored, (n < N) & (p < P) & (q < Q), tile, k, K)
    if IMAGES:
        y.store([h0, w0, n0, k0], stored.reshape(1, 1, BLOCK_M, BLOCK_K))
    else:
        y.store([n0, h0, w0, k0], stored.reshape(1, BLOCK_H, BLOCK_W, BLOCK_K))


@triton.jit
def _rows(n0, h0, w0, IMAGES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr):
    """Image, row and column of each row of the tile."""
    m = tl.arange(0, BLOCK_M)
    n, p, q = n0 + 0 * m, h0 + m // BLOCK_W, w0 + m % BLOCK_W
    if IMAGES:
        n, p, q = n0 + m, h0 + 0 * m, w0 + 0 * m
    return n, p, q


@triton.jit(
    do_not_specialize=[
        "N", "H", "W", "C", "P", "Q", "K", "TILES_N", "TILES_H", "TILES_W", "TILES_K", "R", "S", "PAD_H", "PAD_W",
        "DILATION_H", "DILATION_W", "EACH",
    ]
)  # fmt: skip
def _convolution_descriptor(
    x, weight0, weight1, y0, y1, residual0, residual1, bias, gamma, beta, mean, var, partial, counts, sums,
    N, H, W, C, P, Q, K, eps, TILES_N, TILES_H, TILES_W, TILES_K, R, S, PAD_H, PAD_W, DILATION_H, DILATION_W, EACH,
    BIAS: tl.constexpr, BN: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr, RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr, MOMENTS: tl.constexpr, SPLIT: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K0: tl.constexpr,
    BLOCK_K1: tl.constexpr, BLOCK_C: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile; with SPLIT one piece of its depth, EACH steps, to sums [pieces, N P Q, K] instead of an epilogue."""
    K = K * 8  # so the compiler knows: the host refuses any other number of channels
    tiles = TILES_N * TILES_H * TILES_W
    tile, tile_k = tile_order(tl.program_id(0), tiles, TILES_K, GROUP)
    k0 = tile_k * (BLOCK_K0 + BLOCK_K1)
    w0 = tile % TILES_W * BLOCK_W
    h0 = tile // TILES_W % TILES_H * BLOCK_H
    n0 = tile // (TILES_W * TILES_H)
    if IMAGES:
        n0 = n0 * BLOCK_M
    chunks = tl.cdiv(C, BLOCK_C)
    steps = R * S * chunks
    r = 0 * k0
    s = 0 * k0
    c = 0 * k0
    if SPLIT:
        begin = tl.program_id(1) * EACH
        steps = tl.minimum(EACH, steps - begin)
        r = begin // chunks // S
        s = begin // chunks % S
        c = begin % chunks * BLOCK_C
    acc0 = tl.zeros((BLOCK_M, BLOCK_K0), tl.float32)
    if BLOCK_K1 > 0:
        acc1 = tl.zeros((BLOCK_M, BLOCK_K1), tl.float32)
    tl.assume(steps > 0)  # else the compiler waits after each product, in case the loop is empty
    for _ in tl.range(0, steps, num_stages=STAGES):
        a = _box(x, n0, h0 + r * DILATION_H - PAD_H, w0 + s * DILATION_W - PAD_W, c, IMAGES, BLOCK_M, BLOCK_C)
        b0 = weight0.load([r * S + s, k0, c]).reshape(BLOCK_K0, BLOCK_C)
        if BLOCK_K1 > 0:  # both loads before both products
            b1 = weight1.load([r * S + s, k0 + BLOCK_K0, c]).reshape(BLOCK_K1, BLOCK_C)
        acc0 = tl.dot(a, b0.T, acc0)
        if BLOCK_K1 > 0:
            acc1 = tl.dot(a, b1.T, acc1)
        c, s, r = advance(c, s, r, BLOCK_C, C, S)
    if SPLIT:
        tl.static_assert(BLOCK_K1 == 0)
        n, p, q = _rows(n0, h0, w0, IMAGES, BLOCK_M, BLOCK_W)
        k = k0 + tl.arange(0, BLOCK_K0)
        m = ((tl.program_id(1) * N + n).to(tl.int64) * P + p) * Q + q
        live = (n < N) & (p < P) & (q < Q)
        tl.store(sums + m[:, None] * K + k[None, :], acc0, mask=live[:, None] & (k < K)[None, :])
    else:
        _finish(
            acc0, y0, residual0, bias, gamma, beta, mean, var, partial, counts, tile, n0, h0, w0, k0, N, P, Q, K, eps,
            BIAS, BN, GAMMA, BETA, RESIDUAL, ACTIVATION, MOMENTS, IMAGES, BLOCK_M, BLOCK_H, BLOCK_W, BLOCK_K0,
        )  # fmt: skip
        if BLOCK_K1 > 0:
            _finish(
                acc1, y1, residual1, bias, gamma, beta, mean, var, partial, counts, tile, n0, h0, w0, k0 + BLOCK_K0,
                N, P, Q, K, eps, BIAS, BN, GAMMA, BETA, RESIDUAL, ACTIVATION, MOMENTS, IMAGES, BLOCK_M, BLOCK_H,
                BLOCK_W, BLOCK_K1,
            )  # fmt: skip


@dataclass(frozen=True)
class Boxes:
    """A tile: `images` images at one pixel (or 1) x a patch of height x width pixels, times k0 + k1 outputs.

    `splits` programs share its depth, taps x channels in steps of c.
    """

    images: int
    height: int
    width: int
    k0: int
    k1: int
    c: int
    warps: int
    stages: int
    splits: int = 1

    @property
    def m(self) -> int:
        return self.images * self.height * self.width

    @property
    def by_images(self) -> bool:
        return self.height * self.width == 1

    def tiles(self, N: int, P: int, Q: int, K: int) -> tuple[int, int, int, int]:
        """Tiles by (images, height, width, outputs)."""
        return (
            triton.cdiv(N, self.images), triton.cdiv(P, self.height), triton.cdiv(Q, self.width),
            triton.cdiv(K, self.k0 + self.k1),
        )  # fmt: skip


_OTHER_SHARED = 4096  # bytes for barriers and the epilogue
_SIZES = (
    (128, 128, 0, 8),
    (128, 128, 0, 4),
    (128, 128, 64, 8),
    (128, 256, 0, 8),
    (128, 64, 0, 4),
    (64, 64, 0, 4),
    (64, 128, 0, 4),
    (64, 32, 0, 4),
    (128, 32, 0, 4),
)  # fmt: skip  (rows, first and second outputs, warps)
_PATCHES = {64: ((8, 8), (4, 16), (2, 32), (1, 64)), 128: ((8, 16), (4, 32), (2, 64), (1, 128))}


def configurations(
    N: int, P: int, Q: int, C: int, K: int, taps: int, moments: bool, device: Device, residual: bool = False
) -> list[Boxes]:  # fmt: skip
    """Every tile that may be chosen for this shape: pruned by waste, by shared memory and by what spills."""
    found: list[Boxes] = []
    c = 64 if C > 32 else 32 if C > 16 else 16
    for m, k0, k1, warps in _SIZES:
        if k0 + k1 > max(32, 2 * K) or (k1 and k0 >= K) or k0 < min(K, 64):
            continue
        blackwell = device.capability >= (10, 0)
        if (k0 == 256 and (moments or residual or blackwell)) or ((m, k0) == (128, 32) and moments and blackwell):
            continue  # it spills
        if ((m, k0, warps) == (128, 128, 4) and (moments or blackwell)) or (k1 == 64 and blackwell):
            continue  # likewise
        fitting = (device.shared - _OTHER_SHARED) // ((m + k0 + k1) * c * 2)
        if fitting < 2:
            continue
        stages = min(4, fitting)
        for shape in _least_wasteful([(m, 1, 1), *((1, h, w) for h, w in _PATCHES[m])], N, P, Q):
            tile = Boxes(*shape, k0, k1, c, warps, stages)
            programs = math.prod(tile.tiles(N, P, Q, K))
            splits = splits_of(programs, taps * triton.cdiv(C, c), device.multiprocessors) if k1 == 0 else [1]
            found += [replace(tile, splits=each) for each in splits]
    return found


def _least_wasteful(shapes: list[tuple[int, int, int]], N: int, P: int, Q: int) -> list[tuple[int, int, int]]:
    """Those of (images, height, width) whose rows are nearly as often inside of the images as the best one's."""

    def live(shape: tuple[int, int, int]) -> float:
        return math.prod(size / (triton.cdiv(size, step) * step) for size, step in zip((N, P, Q), shape, strict=True))

    best = max(map(live, shapes))
    return [shape for shape in shapes if live(shape) >= _LEAST_LIVE * best]


_LEAST_LIVE = 0.8


def predicted_cost(boxes: Boxes, N: int, P: int, Q: int, C: int, K: int, taps: int, multiprocessors: int) -> float:
    """Clocks of the busiest multiprocessor, empty rows included: a step's products or its operands from L2."""
    waves = triton.cdiv(math.prod(boxes.tiles(N, P, Q, K)) * boxes.splits, multiprocessors)
    steps = pieces_of(taps * triton.cdiv(C, boxes.c), boxes.splits)[0]
    step = step_clocks(boxes.m, boxes.k0 + boxes.k1, boxes.c)
    return waves * (steps * step + TILE_CLOCKS) + (LAUNCH_CLOCKS if boxes.splits > 1 else 0)


def unsupported(x: Tensor, residual: Tensor | None, K: int, stride: tuple[int, int]) -> str | None:
    """None where descriptors can read x [N, C, H, W] and the residual and write K channels, else the reason."""
    if any(step != 1 for step in stride):
        return "a box has no stride between its pixels"
    if x.dtype not in (torch.bfloat16, torch.float16):
        return "the descriptor kernel has 16-bit types only"
    if x.shape[1] % 8 or K % 8:
        return "rows of a descriptor are multiples of 16 bytes"
    for t in (x,) if residual is None else (x, residual):
        strides = [t.stride(d) for d in (0, 2, 3) if t.shape[d] > 1]
        if t.data_ptr() % 16 or any(stride == 0 or stride % 8 for stride in strides):
            return "a descriptor wants 16-byte aligned pixels, none of them expanded"
    if device_of(x).capability < (9, 0):
        return "the device has no tensor memory accelerator"
    return None


def _pixels(t: Tensor) -> Tensor:
    """[N, C, H, W] as [N, H, W, C]; dimensions of one element get the stride of a dense tensor, any would do."""
    N, C, H, W = t.shape
    column = t.stride(3) if W > 1 else C
    row = t.stride(2) if H > 1 else W * column
    image = t.stride(0) if N > 1 else H * row
    return t.as_strided((N, H, W, C), (image, row, column, 1))


def joined_views(tensors: list[Tensor], window: tuple[int, int], padding: tuple[int, int]) -> list[Tensor]:
    """[N, C, H, W] as [N, H, W, C], with dimensions that no tap crosses joined into the first where strides allow it.

    The more images, the fuller the tiles: a 1 x 7 convolution has N H of them, a 1 x 1 convolution N H W.
    """
    views = [_pixels(t) for t in tensors]
    if window[0] > 1 or padding[0] or any(t.stride(0) != t.shape[1] * t.stride(1) for t in views):
        return views
    if window[1] > 1 or padding[1] or any(t.stride(1) != t.shape[2] * t.stride(2) for t in views):
        return [t.as_strided((t.shape[0] * t.shape[1], 1, *t.shape[2:]), (t.stride(1), *t.stride()[1:])) for t in views]
    pixels = [t.stride(2) for t in views]
    return [
        t.as_strided((t.shape[:3].numel(), 1, 1, t.shape[3]), (stride, stride, stride, 1))
        for t, stride in zip(views, pixels, strict=True)
    ]


def _describe(t: Tensor, boxes: Boxes, last: int) -> TensorDescriptor:
    """A box of `last` channels of [N, H, W, C]; the dimensions in the order that folds."""
    order = (1, 2, 0, 3) if boxes.by_images else (0, 1, 2, 3)
    block = (boxes.images, boxes.height, boxes.width, last)
    t = t.permute(order)
    return TensorDescriptor(t, list(t.shape), list(t.stride()), [block[d] for d in order])


def convolve_boxes(
    x: Tensor, weight: Tensor, y: Tensor, window: tuple[int, int], padding: tuple[int, int],
    dilation: tuple[int, int], epilogue: Epilogue, moments: bool,
) -> Moments | None:  # fmt: skip
    """Write y [N, K, P, Q] from x [N, C, H, W] and weight [R S, K, C] contiguous; channels are adjacent in both."""
    residual = epilogue.residual
    source, target, *rest = joined_views([t for t in (x, y, residual) if t is not None], window, padding)
    added = rest[0] if rest else target
    N, P, Q, K = target.shape
    _, H, W, C = source.shape
    device = device_of(x)
    taps = window[0] * window[1]

    def run(tile: Boxes) -> Moments | None:
        i, h, w, k = tile.tiles(N, P, Q, K)
        second = tile.k1 or tile.k0
        stages = Stages.of(y, epilogue, moments, i * h * w, taps * triton.cdiv(C, tile.c), tile.splits)
        _convolution_descriptor[(i * h * w * k, stages.pieces)](
            _describe(source, tile, tile.c),
            *(TensorDescriptor.from_tensor(weight, [1, n, tile.c]) for n in (tile.k0, second)),
            *(_describe(target, tile, n) for n in (tile.k0, second)),
            *(_describe(added, tile, n) for n in (tile.k0, second)),
            *stages.pointers(weight), N, H, W, C, P, Q, K // 8, epilogue.eps, i, h, w, k, *window, *padding, *dilation,
            stages.each, **stages.flags(), IMAGES=tile.by_images, BLOCK_M=tile.m, BLOCK_H=tile.height,
            BLOCK_W=tile.width, BLOCK_K0=tile.k0, BLOCK_K1=tile.k1, BLOCK_C=tile.c, GROUP=GROUP, STAGES=tile.stages,
            num_warps=tile.warps,
        )  # fmt: skip
        return stages.finish()

    def launch(tile: Boxes) -> Tensor:
        run(tile)
        return y

    shape: dict[str, tuning.Value] = {
        "N": N, "H": H, "W": W, "C": C, "K": K, "R": window[0], "S": window[1], "padding": str(padding),
        "dilation": str(dilation), "residual": residual is not None, "moments": moments,
    }  # fmt: skip
    return run(
        tuning.choose(
            "convolution_descriptor", x, shape,
            lambda: configurations(N, P, Q, C, K, taps, moments, device, residual is not None),
            lambda tile: predicted_cost(tile, N, P, Q, C, K, taps, device.multiprocessors), launch, taps=taps,
        )
    )  # fmt: skip
