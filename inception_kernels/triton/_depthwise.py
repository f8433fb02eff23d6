"""The depthwise half of separable_conv2d on its own: forward, input gradient, weight and bias gradient.

Bound by memory. With stride 1 rows roll through registers (`_depthwise_rows.py`, `_depthwise_rows_gradient.py`); the
kernels here are for all other windows: a program owns a block of neighbouring pixels x channels, so that the R S reads
of a pixel that its neighbours share come from the nearest cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _depthwise_rows, _depthwise_rows_gradient, tuning
from ._convolution import adjacent_channels, pixel_strides
from ._depthwise_rows import Rows, can_roll, depthwise_rows
from ._depthwise_rows_gradient import Strips
from ._device import activate, activation_gradient, in_elements, load_vector, unit_of
from ._weight_gradient import sum_of_pieces
from .runtime import device_of

_PIXELS = 32
_CHANNELS = 64
_MAX_SLICES = 256


@triton.jit
def depthwise_tile(
    x, weight, bias, n, h0, w0, live, c, H, W, C, x_n, x_h, x_w,
    R: tl.constexpr, S: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, BIAS: tl.constexpr,
    INPUT: tl.constexpr,
):  # fmt: skip
    """[pixels, channels] float32: depthwise(input(x)) + bias of output pixels whose first tap reads (n, h0, w0)."""
    inside = c < C
    acc = tl.zeros((n.shape[0], c.shape[0]), tl.float32) + load_vector(bias, c, inside, BIAS, 0.0)[None, :]
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            h = h0 + r * DILATION_H
            w = w0 + s * DILATION_W
            ok = live & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            at = n * x_n + h.to(tl.int64) * x_h + w * x_w
            v = tl.load(x + at[:, None] + c[None, :], mask=ok[:, None] & inside[None, :], other=0.0).to(tl.float32)
            k = tl.load(weight + (r * S + s) * C + c, mask=inside, other=0.0).to(tl.float32)
            acc += activate(v, INPUT) * k[None, :]
    return acc


@triton.jit(do_not_specialize=["M", "H", "W", "C", "P", "Q", "x_n", "x_h", "x_w"])
def _forward(
    x, weight, bias, y, grad, grad_out, M, H, W, C, P, Q, x_n, x_h, x_w, UNIT: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr,
    PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, BIAS: tl.constexpr,
    INPUT: tl.constexpr, MID: tl.constexpr, GRAD: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """u = depthwise(input(x)) + bias; y [M, C] = mid(u); with GRAD also grad_out = grad mid'(u). weight is [R S, C]."""
    C, x_n, x_h, x_w = in_elements(C, x_n, x_h, x_w, UNIT)
    m = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n = (m // (P * Q)).to(tl.int64)
    h0 = m // Q % P * STRIDE_H - PAD_H
    w0 = m % Q * STRIDE_W - PAD_W
    u = depthwise_tile(
        x, weight, bias, n, h0, w0, m < M, c, H, W, C, x_n, x_h, x_w, R, S, DILATION_H, DILATION_W, BIAS, INPUT
    )
    live = (m < M)[:, None] & (c < C)[None, :]
    at = m.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(y + at, activate(u, MID).to(y.dtype.element_ty), mask=live)
    if GRAD:
        masked = activation_gradient(tl.load(grad + at, mask=live, other=0.0).to(tl.float32), u, MID)
        tl.store(grad_out + at, masked.to(grad.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["M", "H", "W", "C", "P", "Q", "x_n", "x_h", "x_w"])
def _input_gradient(
    grad, weight, x, grad_x, M, H, W, C, P, Q, x_n, x_h, x_w, UNIT: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr,
    PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, INPUT: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """grad_x [N H W, C] = input'(x) times the sum over the outputs that read the pixel; grad is [N P Q, C]."""
    C, x_n, x_h, x_w = in_elements(C, x_n, x_h, x_w, UNIT)
    m = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < C
    n = (m // (H * W)).to(tl.int64)
    h = m // W % H
    w = m % W
    acc = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for r in tl.static_range(R):
        for s in tl.static_range(S):
            down = h + PAD_H - r * DILATION_H
            across = w + PAD_W - s * DILATION_W
            p = down // STRIDE_H
            q = across // STRIDE_W
            ok = (m < M) & (down >= 0) & (across >= 0) & (p < P) & (q < Q)
            if STRIDE_H > 1:
                ok = ok & (p * STRIDE_H == down)
            if STRIDE_W > 1:
                ok = ok & (q * STRIDE_W == across)
            at = (n * P + p) * Q + q
            g = tl.load(grad + at[:, None] * C + c[None, :], mask=ok[:, None] & inside[None, :], other=0.0)
            k = tl.load(weight + (r * S + s) * C + c, mask=inside, other=0.0).to(tl.float32)
            acc += g.to(tl.float32) * k[None, :]
    live = (m < M)[:, None] & inside[None, :]
    if INPUT != "none":
        at = n * x_n + h.to(tl.int64) * x_h + w * x_w
        v = tl.load(x + at[:, None] + c[None, :], mask=live, other=0.0).to(tl.float32)
        acc = activation_gradient(acc, v, INPUT)
    tl.store(grad_x + m.to(tl.int64)[:, None] * C + c[None, :], acc.to(grad_x.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["M", "H", "W", "C", "P", "Q", "x_n", "x_h", "x_w", "rows"])
def _slice_weight_gradient(
    grad, x, partial, M, H, W, C, P, Q, x_n, x_h, x_w, rows, UNIT: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr,
    PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, INPUT: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """partial [slices, R S + 1, C]: per tap the sum of grad times input(x) over a slice; the last is grad's own sum."""
    C, x_n, x_h, x_w = in_elements(C, x_n, x_h, x_w, UNIT)
    tap = tl.program_id(0)  # fastest, because all taps read the same slice
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    piece = tl.program_id(2)
    begin = piece * rows
    end = tl.minimum(begin + rows, M)
    acc = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for first in range(begin, end, PIXELS):
        m = first + tl.arange(0, PIXELS)
        live = (m < end)[:, None] & (c < C)[None, :]
        g = tl.load(grad + m.to(tl.int64)[:, None] * C + c[None, :], mask=live, other=0.0).to(tl.float32)
        if tap < R * S:
            n = (m // (P * Q)).to(tl.int64)
            h = m // Q % P * STRIDE_H - PAD_H + tap // S * DILATION_H
            w = m % Q * STRIDE_W - PAD_W + tap % S * DILATION_W
            ok = live & ((h >= 0) & (h < H) & (w >= 0) & (w < W))[:, None]
            at = n * x_n + h.to(tl.int64) * x_h + w * x_w
            g = g * activate(tl.load(x + at[:, None] + c[None, :], mask=ok, other=0.0).to(tl.float32), INPUT)
            # An activation of the padding's zero is zero for all of them; NaN in grad still has to reach the sum.
        acc += g
    tl.store(partial + (piece.to(tl.int64) * (R * S + 1) + tap) * C + c, tl.sum(acc, axis=0), mask=c < C)


@dataclass(frozen=True)
class Depthwise:
    """Geometry and weights of the depthwise half: x [N, C, H, W] -> [N, C, P, Q]."""

    x: Tensor
    weight: Tensor  # [C, 1, R, S]
    bias: Tensor | None
    size: tuple[int, int]  # P, Q
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    input_activation: str
    mid_activation: str

    @property
    def pixels(self) -> int:
        return self.x.shape[0] * self.size[0] * self.size[1]

    def window(self) -> dict[str, int]:
        R, S = self.weight.shape[2:]
        return {
            "R": R, "S": S, "STRIDE_H": self.stride[0], "STRIDE_W": self.stride[1], "PAD_H": self.padding[0],
            "PAD_W": self.padding[1], "DILATION_H": self.dilation[0], "DILATION_W": self.dilation[1],
        }  # fmt: skip

    @property
    def unit(self) -> int:
        return unit_of(self.x.shape[1], *pixel_strides(self.x))

    def shape(self) -> tuple[int, ...]:
        """H, W, C, P, Q and the strides of x's images, rows and columns; C and the strides in units."""
        _, C, H, W = self.x.shape
        return H, W, C // self.unit, *self.size, *(stride // self.unit for stride in pixel_strides(self.x))


def taps_major(weight: Tensor) -> Tensor:
    """[C, 1, R, S] as [R S, C]."""
    return weight.reshape(weight.shape[0], -1).t().contiguous()


def prepare(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int],
    dilation: tuple[int, int], input_activation: str, mid_activation: str,
) -> Depthwise:  # fmt: skip
    """x is copied to channels-last where its channels are not adjacent."""
    P, Q = (
        (x.shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d] + 1
        for d in range(2)
    )
    stride, padding, dilation = ((step[0], step[1]) for step in (stride, padding, dilation))  # an operator gets lists
    return Depthwise(
        adjacent_channels(x), weight, bias, (P, Q), stride, padding, dilation, input_activation, mid_activation
    )


def forward(d: Depthwise, grad: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """mid(depthwise(x)) [N, C, P, Q] channels-last, and grad (same shape, channels-last) times mid' there."""
    N, C = d.x.shape[:2]
    y = torch.empty((N, C, *d.size), dtype=d.x.dtype, device=d.x.device, memory_format=torch.channels_last)
    masked = None if grad is None else torch.empty_like(grad)
    if can_roll(d.weight.shape[2], d.weight.shape[3], d.stride, d.dilation):
        _roll(d.x, d.weight, d.bias, y, d.padding, d.input_activation, d.mid_activation, grad=grad, grad_out=masked)
        return y, masked
    _forward[(triton.cdiv(d.pixels, _PIXELS), triton.cdiv(C, _CHANNELS))](
        d.x, taps_major(d.weight), d.weight if d.bias is None else d.bias.contiguous(), y,
        y if grad is None else grad, y if masked is None else masked, d.pixels, *d.shape(), UNIT=d.unit, **d.window(),
        BIAS=d.bias is not None, INPUT=d.input_activation, MID=d.mid_activation, GRAD=grad is not None,
        PIXELS=_PIXELS, CHANNELS=_CHANNELS,
    )  # fmt: skip
    return y, masked


def input_gradient(d: Depthwise, grad: Tensor) -> Tensor:
    """[N, C, H, W] channels-last from grad [N, C, P, Q] channels-last."""
    N, C, H, W = d.x.shape
    R, S = d.weight.shape[2:]
    grad_x = torch.empty((N, C, H, W), dtype=d.x.dtype, device=d.x.device, memory_format=torch.channels_last)
    if can_roll(R, S, d.stride, d.dilation):  # the gradient is a convolution with the window turned round
        turned = (R - 1 - d.padding[0], S - 1 - d.padding[1])
        _roll(grad, d.weight.flip(2, 3), None, grad_x, turned, "none", "none", v=d.x, mask=d.input_activation)
        return grad_x
    pixels = N * H * W
    _input_gradient[(triton.cdiv(pixels, _PIXELS // 2), triton.cdiv(C, _CHANNELS))](
        grad, taps_major(d.weight), d.x, grad_x, pixels, *d.shape(), UNIT=d.unit, **d.window(),
        INPUT=d.input_activation, PIXELS=_PIXELS // 2, CHANNELS=_CHANNELS,
    )  # fmt: skip
    return grad_x


def _roll(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, padding: tuple[int, int], before: str, after: str, *,
    v: Tensor | None = None, mask: str = "none", grad: Tensor | None = None, grad_out: Tensor | None = None,
) -> None:  # fmt: skip
    """Write y [N, C, P, Q] channels-last from x [N, C, H, W] with adjacent channels: see depthwise_rows."""
    N, C, H, W = x.shape
    P, Q = y.shape[2:]
    R, S = weight.shape[2:]
    taps, device = taps_major(weight), device_of(x)
    vector = weight if bias is None else bias.contiguous()
    seen = x if v is None else v
    strides = (*pixel_strides(x), *pixel_strides(seen))
    unit = unit_of(C, *strides)

    def launch(rows: Rows) -> Tensor:
        depthwise_rows[rows.programs(N, C, P, Q)](
            x, taps, vector, y, seen, y if grad is None else grad, y if grad_out is None else grad_out,
            N, H, W, C // unit, P, Q, *(stride // unit for stride in strides), rows.rows,
            triton.cdiv(Q, rows.columns), *padding, UNIT=unit, R=R, S=S, BIAS=bias is not None, BEFORE=before,
            AFTER=after, MASK=mask, GRAD=grad is not None, COLUMNS=rows.columns, BLOCK=rows.block,
            num_warps=rows.warps, num_stages=1,
        )  # fmt: skip
        return y

    shape: dict[str, tuning.Value] = {
        "N": N, "C": C, "P": P, "Q": Q, "R": R, "S": S, "unit": unit, "bias": bias is not None, "before": before,
        "after": after, "mask": mask, "grad": grad is not None,
    }  # fmt: skip
    launch(
        tuning.choose(
            "depthwise_rows", x, shape, lambda: _depthwise_rows.configurations(P, Q, R, S),
            lambda rows: _depthwise_rows.predicted_cost(rows, N, C, P, Q, (R, S), device.multiprocessors), launch,
        )
    )  # fmt: skip


def weight_gradient(d: Depthwise, grad: Tensor) -> tuple[Tensor, Tensor]:
    """([C, 1, R, S] of the weight's dtype, bias gradient [C] float32) from grad [N, C, P, Q] channels-last."""
    C, _, R, S = d.weight.shape
    rolls = can_roll(R, S, d.stride, d.dilation)
    sums = sum_of_pieces(_rolled_sums(d, grad) if rolls else _slice_sums(d, grad), torch.float32)
    return sums[:-1].t().reshape(C, 1, R, S).to(d.weight.dtype).contiguous(), sums[-1]


def _rolled_sums(d: Depthwise, grad: Tensor) -> Tensor:
    """[pieces, R S + 1, C]: see depthwise_rows_gradient."""
    N, C, P, Q = grad.shape
    R, S = d.weight.shape[2:]
    device = device_of(grad)

    def run(strips: Strips) -> Tensor:
        return _depthwise_rows_gradient.partial_sums(grad, d.x, (R, S), d.padding, d.input_activation, strips, d.unit)

    shape: dict[str, tuning.Value] = {
        "N": N, "C": C, "P": P, "Q": Q, "R": R, "S": S, "padding": str(d.padding), "unit": d.unit,
        "input": d.input_activation,
    }  # fmt: skip
    strips = tuning.choose(
        "depthwise_rows_gradient", grad, shape, lambda: _depthwise_rows_gradient.configurations(N, R, S),
        lambda strips: _depthwise_rows_gradient.predicted_cost(strips, N, C, P, Q, (R, S), device.multiprocessors),
        lambda strips: sum_of_pieces(run(strips), torch.float32),
    )  # fmt: skip
    return run(strips)


def _slice_sums(d: Depthwise, grad: Tensor) -> Tensor:
    """[pieces, R S + 1, C]: see _slice_weight_gradient."""
    C, _, R, S = d.weight.shape
    tiles = triton.cdiv(C, _CHANNELS)
    wanted = max(1, min(_MAX_SLICES, 4096 // (tiles * (R * S + 1)), triton.cdiv(d.pixels, 4 * _PIXELS)))
    rows = triton.cdiv(triton.cdiv(d.pixels, wanted), _PIXELS) * _PIXELS
    count = triton.cdiv(d.pixels, rows)
    partial = torch.empty((count, R * S + 1, C), dtype=torch.float32, device=grad.device)
    _slice_weight_gradient[(R * S + 1, tiles, count)](
        grad, d.x, partial, d.pixels, *d.shape(), rows, UNIT=d.unit, **d.window(), INPUT=d.input_activation,
        PIXELS=_PIXELS, CHANNELS=_CHANNELS,
    )  # fmt: skip
    return partial
