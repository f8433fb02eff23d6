"""separable_conv2d in one kernel, for layers that memory binds: the depthwise result never leaves the chip.

The rows of a tile are GROUPS patches of PATCH_H x PATCH_W output pixels: those at one place of GROUPS images, or in a
block of one image. So a tile's place takes scalar divisions only; a division for each row was a quarter of all
instructions. Each pixel of the input that a patch reads is one register tensor [GROUPS, BLOCK_C], loaded once; that a
tap is a shift costs nothing, because it only says which of these tensors is meant. The patches' results, joined to
[GROUPS PATCH_H PATCH_W, BLOCK_C], are the product's operand. A program computes all outputs of its pixels, so that no
depthwise result is computed twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._convolution import pixel_strides, precision_of
from ._depthwise import Depthwise, taps_major
from ._device import activate, load_vector, unit_of
from ._epilogue import Epilogue, Moments, apply, pointers_of, scale_and_shift, store_moments
from ._roofline import Overlap, Work
from .runtime import device_of


@triton.jit
def _origin(
    tile, TILES_H, TILES_W, IMAGES: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr, PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
):  # fmt: skip
    """The tile's first image, output row and column."""
    row = tile // TILES_W
    n = row // TILES_H
    return n * IMAGES, (row - n * TILES_H) * (DOWN * PATCH_H), (tile - row * TILES_W) * (ACROSS * PATCH_W)


@triton.jit
def _places(
    n, p, q, group, IMAGES: tl.constexpr, ACROSS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr
):  # fmt: skip
    """Image, and first output row and column, of each of these patches of a tile that begins at n, p, q."""
    if IMAGES == 1:
        return n + 0 * group, p + group // ACROSS * PATCH_H, q + group % ACROSS * PATCH_W
    return n + group, p + 0 * group, q + 0 * group


@triton.jit
def _corners(
    x, n, p, q, N, PAD_H, PAD_W, x_n, x_h, x_w, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, IMAGES: tl.constexpr,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
):  # fmt: skip
    """Of the tile's patches the first pixel that each reads: its address, row and column, and whether the patch is."""
    n, p, q = _places(n, p, q, tl.arange(0, IMAGES * DOWN * ACROSS), IMAGES, ACROSS, PATCH_H, PATCH_W)
    h0 = p * STRIDE_H - PAD_H
    w0 = q * STRIDE_W - PAD_W
    return x + n.to(tl.int64) * x_n + h0.to(tl.int64) * x_h + w0.to(tl.int64) * x_w, h0, w0, n < N


@triton.jit
def _load_patches(
    image, live, h0, w0, first, H, W, C, x_h, x_w, READ_H: tl.constexpr, READ_W: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """READ_H READ_W tensors [GROUPS, BLOCK_C]: every pixel that a patch reads; zero outside of the image."""
    c = first + tl.arange(0, BLOCK_C)
    pixels = ()
    for i in tl.static_range(READ_H * READ_W):
        h = h0 + i // READ_W
        w = w0 + i % READ_W
        ok = live & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        at = image + (i // READ_W * x_h.to(tl.int64) + i % READ_W * x_w)
        pixels = pixels + (tl.load(at[:, None] + c[None, :], mask=ok[:, None] & (c < C)[None, :], other=0.0),)
    return pixels


@triton.jit
def _window(
    values, weights, start, corner: tl.constexpr, READ_W: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
):  # fmt: skip
    """start + the sum over the window whose first tap is values[corner]."""
    u = values[corner] * weights[0] + start
    for tap in tl.static_range(1, R * S):
        u += values[corner + tap // S * DILATION_H * READ_W + tap % S * DILATION_W] * weights[tap]
    return u


@triton.jit
def _join(tensors, HALF: tl.constexpr):
    """2 HALF tensors -> HALF; the new last axis is the highest bit of the index that has not been joined yet."""
    joined = ()
    for i in tl.static_range(HALF):
        joined = joined + (tl.join(tensors[i], tensors[i + HALF]),)
    return joined


@triton.jit
def _rows(pixels, COUNT: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """COUNT tensors [GROUPS, BLOCK_C] -> [ROWS, BLOCK_C]; row = group * COUNT + pixel."""
    if COUNT == 16:
        pixels = _join(_join(_join(_join(pixels, 8), 4), 2), 1)[0].permute(0, 2, 3, 4, 5, 1)
    elif COUNT == 8:
        pixels = _join(_join(_join(pixels, 4), 2), 1)[0].permute(0, 2, 3, 4, 1)
    else:
        pixels = _join(_join(pixels, 2), 1)[0].permute(0, 2, 3, 1)
    return pixels.reshape(ROWS, BLOCK_C)


@triton.jit
def _store_tile(
    acc, y, residual, scale, shift, partial, counts, tile, n, p, q, N, P, Q, K, r_n, r_p, r_q,
    RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, MOMENTS: tl.constexpr, IMAGES: tl.constexpr,
    ACROSS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
):  # fmt: skip
    """The epilogue of the products acc [ROWS, BLOCK_K] of the tile that begins at n, p, q, to y [N, P, Q, K]."""
    m = tl.arange(0, acc.shape[0])
    k = tl.arange(0, acc.shape[1])
    n, p, q = _places(n, p, q, m // (PATCH_H * PATCH_W), IMAGES, ACROSS, PATCH_H, PATCH_W)
    p += m // PATCH_W % PATCH_H
    q += m % PATCH_W
    live = (n < N) & (p < P) & (q < Q)
    n = n.to(tl.int64)
    ok = live[:, None] & (k < K)[None, :]
    added = acc
    if RESIDUAL:
        at = n * r_n + p.to(tl.int64) * r_p + q.to(tl.int64) * r_q
        added = tl.load(residual + at[:, None] + k[None, :], mask=ok, other=0.0)
    u = apply(acc, scale, shift, added, RESIDUAL, ACTIVATION)
    stored = u.to(y.dtype.element_ty)
    if MOMENTS:
        store_moments(partial, counts, stored, live, tile, k, K)
    tl.store(y + (((n * P + p) * Q + q) * K)[:, None] + k[None, :], stored, mask=ok)


@triton.jit(
    do_not_specialize=[
        "N", "H", "W", "C", "P", "Q", "K", "x_n", "x_h", "x_w", "r_n", "r_p", "r_q", "TILES_H", "TILES_W", "PAD_H",
        "PAD_W", "TILES",
    ]
)  # fmt: skip
def separable_patches(
    x, depthwise, depthwise_bias, pointwise, y, residual, bias, gamma, beta, mean, var, partial, counts,
    N, H, W, C, P, Q, K, x_n, x_h, x_w, r_n, r_p, r_q, TILES_H, TILES_W, PAD_H, PAD_W, TILES, eps,
    C_UNIT: tl.constexpr, K_UNIT: tl.constexpr, R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, DEPTHWISE_BIAS: tl.constexpr,
    INPUT: tl.constexpr, MID: tl.constexpr, BIAS: tl.constexpr, BN: tl.constexpr, GAMMA: tl.constexpr,
    BETA: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, MOMENTS: tl.constexpr,
    PRECISION: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
    IMAGES: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """y [N, P, Q, K] of x [N, C, H, W] with adjacent channels; depthwise is [R S, C], pointwise [K, C].

    AHEAD: programs stay, and load a chunk, or the first of their next tile, while they compute the one before.
    """
    COUNT: tl.constexpr = PATCH_H * PATCH_W
    ROWS: tl.constexpr = IMAGES * DOWN * ACROSS * COUNT
    READ_H: tl.constexpr = (PATCH_H - 1) * STRIDE_H + (R - 1) * DILATION_H + 1
    READ_W: tl.constexpr = (PATCH_W - 1) * STRIDE_W + (S - 1) * DILATION_W + 1
    C = C * C_UNIT
    K = K * K_UNIT
    x_n = x_n * C_UNIT
    x_h = x_h * C_UNIT
    x_w = x_w * C_UNIT
    r_n = r_n * K_UNIT
    r_p = r_p * K_UNIT
    r_q = r_q * K_UNIT
    tile = tl.program_id(0)
    first = 0 * tile
    steps = tl.cdiv(C, BLOCK_C)
    n, p, q = _origin(tile, TILES_H, TILES_W, IMAGES, DOWN, ACROSS, PATCH_H, PATCH_W)
    image, h0, w0, live = _corners(
        x, n, p, q, N, PAD_H, PAD_W, x_n, x_h, x_w, STRIDE_H, STRIDE_W, IMAGES, DOWN, ACROSS, PATCH_H, PATCH_W
    )
    if AHEAD:
        following = _load_patches(image, live, h0, w0, first, H, W, C, x_h, x_w, READ_H, READ_W, BLOCK_C)
        steps = steps * tl.cdiv(TILES - tile, tl.num_programs(0))
    k = tl.arange(0, BLOCK_K)
    if AHEAD:
        scale, shift = scale_and_shift(bias, gamma, beta, mean, var, k, K, eps, BIAS, BN, GAMMA, BETA)
    acc = tl.zeros((ROWS, BLOCK_K), tl.float32)
    for _ in range(steps):
        if AHEAD:
            current = following
        else:
            current = _load_patches(image, live, h0, w0, first, H, W, C, x_h, x_w, READ_H, READ_W, BLOCK_C)
        c = first + tl.arange(0, BLOCK_C)
        inside = c < C
        b = tl.load(
            pointwise + k.to(tl.int64)[None, :] * C + c[:, None], mask=inside[:, None] & (k < K)[None, :], other=0.0
        )
        values = ()
        for i in tl.static_range(READ_H * READ_W):
            values = values + (activate(current[i].to(tl.float32), INPUT),)
        weights = ()
        for i in tl.static_range(R * S):
            weights = weights + (tl.load(depthwise + i * C + c, mask=inside, other=0.0).to(tl.float32)[None, :],)
        start = load_vector(depthwise_bias, c, inside, DEPTHWISE_BIAS, 0.0)[None, :]
        first += BLOCK_C
        is_last = first >= C
        if AHEAD:
            next_n, next_p, next_q = n, p, q
            if is_last:
                first = 0 * first
                next_n, next_p, next_q = _origin(
                    tile + tl.num_programs(0), TILES_H, TILES_W, IMAGES, DOWN, ACROSS, PATCH_H, PATCH_W
                )
                image, h0, w0, live = _corners(
                    x, next_n, next_p, next_q, N, PAD_H, PAD_W, x_n, x_h, x_w, STRIDE_H, STRIDE_W, IMAGES, DOWN,
                    ACROSS, PATCH_H, PATCH_W,
                )  # fmt: skip
            following = _load_patches(image, live, h0, w0, first, H, W, C, x_h, x_w, READ_H, READ_W, BLOCK_C)
        pixels = ()
        for i in tl.static_range(COUNT):
            u = _window(
                values, weights, start, i // PATCH_W * STRIDE_H * READ_W + i % PATCH_W * STRIDE_W, READ_W, R, S,
                DILATION_H, DILATION_W,
            )  # fmt: skip
            pixels = pixels + (activate(u, MID).to(x.dtype.element_ty),)
        acc = tl.dot(_rows(pixels, COUNT, ROWS, BLOCK_C), b, acc, input_precision=PRECISION)
        if AHEAD:
            if is_last:
                _store_tile(
                    acc, y, residual, scale, shift, partial, counts, tile, n, p, q, N, P, Q, K, r_n, r_p, r_q,
                    RESIDUAL, ACTIVATION, MOMENTS, IMAGES, ACROSS, PATCH_H, PATCH_W,
                )  # fmt: skip
                acc = tl.zeros((ROWS, BLOCK_K), tl.float32)
                tile += tl.num_programs(0)
            n, p, q = next_n, next_p, next_q
    if not AHEAD:
        scale, shift = scale_and_shift(bias, gamma, beta, mean, var, k, K, eps, BIAS, BN, GAMMA, BETA)
        _store_tile(
            acc, y, residual, scale, shift, partial, counts, tile, n, p, q, N, P, Q, K, r_n, r_p, r_q, RESIDUAL,
            ACTIVATION, MOMENTS, IMAGES, ACROSS, PATCH_H, PATCH_W,
        )  # fmt: skip


@dataclass(frozen=True)
class Patches:
    """A tile: k outputs of patches of height x width pixels, in steps of c channels.

    The patches lie at one place of `images` images, or `down` x `across` side by side in one.
    ahead: a program for each multiprocessor, which loads ahead of what it computes, instead of one for each tile.
    """

    height: int
    width: int
    images: int
    down: int
    across: int
    k: int
    c: int
    warps: int
    ahead: bool = False

    def tiles(self, N: int, P: int, Q: int) -> tuple[int, int, int]:
        """By images, height and width."""
        sizes = (self.images, self.down * self.height, self.across * self.width)
        n, h, w = (triton.cdiv(size, step) for size, step in zip((N, P, Q), sizes, strict=True))
        return n, h, w

    @property
    def rows(self) -> int:
        return self.images * self.down * self.across * self.height * self.width


_MAX_OUTPUTS = 256
_MAX_READ = 36  # input pixels of a patch, each a tensor in registers
_PATCHES = ((2, 4, 8), (2, 2, 16))  # height, width and how many; the more at once, the fewer are read twice
_ACROSS = 4  # of the patches of a tile in one image
# Of a warp, counted in the compiled kernels: per pixel and channel (loading, depthwise, joining); per pixel and output,
# where programs stay and compute the scale once, and where they do not.
_INSTRUCTIONS = 1.0
_EPILOGUE_INSTRUCTIONS = {True: 0.35, False: 0.6}


def configurations(C: int, K: int, d: Depthwise, moments: bool) -> list[Patches]:
    """Every tile that may be chosen; none where registers do not hold the patch or the outputs."""
    if K > _MAX_OUTPUTS or d.x.dtype not in (torch.bfloat16, torch.float16):
        return []
    k = max(16, triton.next_power_of_2(K))
    blackwell = device_of(d.x).capability >= (10, 0)
    patch = next((each for each in _PATCHES if _pixels_read(each, d) <= _MAX_READ), None)
    if patch is None:
        return []
    height, width, count = patch
    c, warps = (64, 8) if C > 32 or k > 128 else (32, 4) if C > 16 else (16, 4)
    tiles = [
        Patches(height, width, *places, k, c, warps, ahead)
        for places in ((count, 1, 1), (1, count // _ACROSS, _ACROSS))
        for ahead in (True, False)
        if not (ahead and moments and (k == 256 or warps == 4 or blackwell))  # it spills
        if not (not ahead and moments and places[0] > 1 and (k, c) == (128, 64))  # likewise
    ]
    fewest = min((math.prod(each.tiles(d.x.shape[0], *d.size)) for each in tiles), default=0)
    return [each for each in tiles if math.prod(each.tiles(d.x.shape[0], *d.size)) == fewest]


def _pixels_read(patch: tuple[int, int, int], d: Depthwise) -> int:
    """Input pixels that the outputs of a patch see."""
    return math.prod(
        (size - 1) * stride + (window - 1) * dilation + 1
        for size, stride, window, dilation in zip(patch[:2], d.stride, d.weight.shape[2:], d.dilation, strict=True)
    )


def work(patches: Patches, d: Depthwise, K: int, residual: bool) -> Work:
    """Counts of the launch: x, y and the residual once, the product, the depthwise part."""
    N, C, H, W = d.x.shape
    tiles = math.prod(patches.tiles(N, *d.size))
    rows = tiles * patches.rows  # those outside of the image included
    return Work(
        memory=d.x.element_size() * (N * H * W * C + d.pixels * K * (2 if residual else 1)),
        products=rows * triton.cdiv(C, patches.c) * patches.c * patches.k,
        instructions=rows * (C * _INSTRUCTIONS + K * _EPILOGUE_INSTRUCTIONS[patches.ahead]),
        programs=tiles,
        overlap=Overlap.MEMORY if patches.ahead else Overlap.NOTHING,
    )


def separable(
    d: Depthwise, pointwise: Tensor, epilogue: Epilogue, moments: bool, patches: Patches, y: Tensor
) -> Moments | None:  # fmt: skip
    """Write y [N, K, P, Q] channels-last; pointwise is [K, C] contiguous, the residual's channels are adjacent."""
    N, C, H, W = d.x.shape
    P, Q = d.size
    K = pointwise.shape[0]
    added = y if epilogue.residual is None else epilogue.residual
    added_strides = pixel_strides(added)
    k_unit = unit_of(K, *added_strides)
    _, tiles_h, tiles_w = by = patches.tiles(N, P, Q)
    tiles = math.prod(by)
    found = Moments.of(tiles, K, y.device) if moments else None
    R, S = d.weight.shape[2:]
    programs = min(tiles, device_of(y).multiprocessors) if patches.ahead else tiles
    separable_patches[(programs,)](
        d.x, taps_major(d.weight), pointwise if d.bias is None else d.bias.contiguous(), pointwise, y, added,
        *epilogue.vectors(pointwise), *pointers_of(found, pointwise),
        N, H, W, C // d.unit, P, Q, K // k_unit, *(stride // d.unit for stride in pixel_strides(d.x)),
        *(stride // k_unit for stride in added_strides), tiles_h, tiles_w, *d.padding, tiles, epilogue.eps,
        C_UNIT=d.unit, K_UNIT=k_unit, R=R, S=S, STRIDE_H=d.stride[0], STRIDE_W=d.stride[1], DILATION_H=d.dilation[0],
        DILATION_W=d.dilation[1], DEPTHWISE_BIAS=d.bias is not None, INPUT=d.input_activation, MID=d.mid_activation,
        **epilogue.flags(), MOMENTS=moments, PRECISION=precision_of(d.x), PATCH_H=patches.height,
        PATCH_W=patches.width, IMAGES=patches.images, DOWN=patches.down, ACROSS=patches.across, BLOCK_K=patches.k,
        BLOCK_C=patches.c, AHEAD=patches.ahead, num_warps=patches.warps, num_stages=1,
    )  # fmt: skip
    return found
